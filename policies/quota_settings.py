"""The settings of quota, each with its range."""

from typing import Annotated

from msgspec import Meta

from events.base import NS_PER_S, PPM
from policies.predictors.embedding_load import STEPS_MAX
from policies.settings import Settings, Switch


class QuotaSettings(Settings, kw_only=True):
    """What can be changed about quota, live.

    `enabled` off: engines are not divided, and caps that were set are lifted; tenants' quotas hold all the same, since
    they are an operator's orders and no guess of ours. Every `period_ns` the embedding share of an engine moves towards
    what the load wants: not at all when that is less than `deadband_ppm` away, and at most `step_max_ppm`.

    The share stays within `embedding_min_ppm` and `embedding_max_ppm` (a max below the min counts as the min), where
    nobody asked for other bounds. Urgency = `slack_weight_ppm` x slack deficit + `queue_weight_ppm` x queue pressure;
    that of embedding jobs counts `embedding_weight_ppm`. The embedding load is forecast `forecast_periods` ahead.

    Where the first request of a kind is larger than its share, admission lets it go on all the same.

    Nothing moves before every engine was measured, nor while one was not for `fresh_ns`.
    """

    enabled: Switch = Switch.ON
    period_ns: Annotated[int, Meta(ge=NS_PER_S, le=3_600 * NS_PER_S)] = NS_PER_S
    deadband_ppm: Annotated[int, Meta(ge=0, le=200_000)] = 5_000
    step_max_ppm: Annotated[int, Meta(ge=1_000, le=PPM)] = 50_000
    embedding_min_ppm: Annotated[int, Meta(ge=0, le=PPM)] = 30_000
    embedding_max_ppm: Annotated[int, Meta(ge=0, le=PPM)] = 500_000
    slack_weight_ppm: Annotated[int, Meta(ge=0, le=10 * PPM)] = PPM
    queue_weight_ppm: Annotated[int, Meta(ge=1, le=10 * PPM)] = PPM
    embedding_weight_ppm: Annotated[int, Meta(ge=1, le=10 * PPM)] = PPM
    forecast_periods: Annotated[int, Meta(ge=1, le=STEPS_MAX)] = 1
    fresh_ns: Annotated[int, Meta(ge=2 * NS_PER_S, le=600 * NS_PER_S)] = 5 * NS_PER_S
