"""The forms about hosts: what was typed, checked by the same shapes as REST, with errors in words beside each field."""

from pydantic import BaseModel, ValidationError

from pupitre.domain.command import RegisterHost
from pupitre.domain.host import Host
from pupitre.portal.schemas import HostChange, HostRequest

_MENDS = {
    "name": "Use small letters, digits and dashes, at most 32, a letter or digit first: lab-2",
    "label": "Use at most 64 characters.",
    "address": "Give an IP address or a host name: 10.0.0.12",
    "port": "Give a number from 1 to 65535.",
    "mac": "Give six pairs of digits and letters a to f: 52:54:00:12:34:56",
}


class HostForm(BaseModel):
    """Form of a host as it was typed, kept as it is until it is right."""

    name: str = ""
    label: str = ""
    address: str = ""
    port: str = ""
    mac: str = ""
    edition: bool = False

    def values(self) -> dict[str, str | bool]:
        return {key: value.strip() if isinstance(value, str) else value for key, value in self.model_dump().items()}


def form_of(host: Host) -> HostForm:
    """The form that says what is so now."""
    return HostForm(
        name=host.name,
        label=host.label,
        address=host.address,
        port=str(host.port),
        mac=host.mac or "",
        edition=host.edition,
    )


def registration(form: HostForm) -> RegisterHost | dict[str, str]:
    """The order, or one sentence for each field that is wrong."""
    values = form.values()
    values.pop("label")
    try:
        asked = HostRequest.model_validate(values | {"mac": values["mac"] or None})
    except ValidationError as error:
        return _sentences(error)
    return RegisterHost(asked.name, asked.address, asked.port, asked.edition, asked.mac)


def change(form: HostForm, host: Host) -> HostChange | dict[str, str]:
    """Change from ``host`` to the form, or one sentence for each field that is wrong."""
    values = form.values()
    values.pop("name")
    before = form_of(host).values()
    try:
        return HostChange.model_validate({key: value for key, value in values.items() if value != before[key]})
    except ValidationError as error:
        return _sentences(error)


def _sentences(error: ValidationError) -> dict[str, str]:
    fields = [str(item["loc"][0]) for item in error.errors()]
    return {field: _MENDS.get(field, "This cannot be used.") for field in fields}
