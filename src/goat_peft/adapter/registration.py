"""Make PEFT know method `goat`."""

from peft.utils.peft_types import PeftType, register_peft_method

METHOD = "goat"
PREFIX = "goat_"


def extend_peft_type(name: str) -> PeftType:
    """Return `PeftType.<name>`, adding it to the enum if this version of PEFT does not ship it.

    `register_peft_method` refuses a name that is not a member of `PeftType`, and PEFT offers no call to add one. A `str` enum keeps its members
    in the four private tables written here; nothing else refers to them, and a second call changes nothing.
    """
    if name not in PeftType.__members__:
        member = str.__new__(PeftType, name)
        member._name_ = name
        member._value_ = name
        member.__objclass__ = PeftType  # type: ignore[attr-defined]
        member._sort_order_ = len(PeftType._member_names_)  # type: ignore[attr-defined]
        PeftType._member_names_.append(name)
        PeftType._member_map_[name] = member
        PeftType._value2member_map_[name] = member
        type.__setattr__(PeftType, name, member)
    return PeftType.__members__[name]


def register(config_cls: type, model_cls: type) -> None:
    """Register the tuner with PEFT; does nothing when done before, and steps aside where PEFT ships a GOAT of its own."""
    from peft.mapping import PEFT_TYPE_TO_CONFIG_MAPPING

    peft_type = extend_peft_type(METHOD.upper())
    if peft_type not in PEFT_TYPE_TO_CONFIG_MAPPING:
        register_peft_method(name=METHOD, config_cls=config_cls, model_cls=model_cls, prefix=PREFIX)
