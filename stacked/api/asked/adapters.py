"""What may be asked about one adapter: the container's verb, and vLLM's two endpoints.

Pure: unknown fields are refused, as a misspelled one would be passed over. It must not know routes.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


class LoadBody(_Strict):
    """`POST /models/{id}`: where the adapter is, and the inference key it gets."""

    source: str | None = Field(default=None, min_length=1)
    key: str | None = None


class LoadLoraBody(_Strict):
    """vLLM's own shape of `/v1/load_lora_adapter`."""

    lora_name: str
    lora_path: str
    load_inplace: bool = False
    is_3d_lora_weight: bool = False


class UnloadLoraBody(_Strict):
    """vLLM's own shape of `/v1/unload_lora_adapter`; the id is vLLM's and means nothing here."""

    lora_name: str
    lora_int_id: int | None = None
