"""TLS to the broker, as the settings ask for it."""

import ssl

from daemon.settings import DaemonSettings
from sql.settings import SettingsError


def tls_context(settings: DaemonSettings, *, with_certificate: bool = True) -> ssl.SSLContext | None:
    """What a connection to the broker is made with; None for an mqtt:// address.

    `with_certificate` shows the daemon's own certificate, where it has one. Raises SettingsError for unusable files.
    """
    if not settings.uses_tls:
        return None
    try:
        context = ssl.create_default_context(cafile=settings.mqtt_ca_file)
    except OSError as error:
        raise SettingsError(
            f"MQTT_CA_FILE is {settings.mqtt_ca_file!r}, which cannot be used ({error}); allowed: a PEM file of CAs"
        ) from error
    if with_certificate and settings.mqtt_cert_file and settings.mqtt_key_file:
        try:
            context.load_cert_chain(settings.mqtt_cert_file, settings.mqtt_key_file)
        except OSError as error:
            raise SettingsError(
                f"MQTT_CERT_FILE and MQTT_KEY_FILE are {settings.mqtt_cert_file!r} and {settings.mqtt_key_file!r}, "
                f"which cannot be used ({error}); allowed: a PEM certificate and its key without a passphrase"
            ) from error
    return context
