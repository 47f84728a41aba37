"""The JSON shapes of the answers, one file for each operation; all of them can be had from here."""

from service.schemas.activations import (
    ActivationsAnswer as ActivationsAnswer,
)
from service.schemas.activations import (
    BlockAnswer as BlockAnswer,
)
from service.schemas.activations import (
    ChannelAnswer as ChannelAnswer,
)
from service.schemas.base import (
    About as About,
)
from service.schemas.base import (
    Answer as Answer,
)
from service.schemas.base import (
    Box as Box,
)
from service.schemas.base import (
    ErrorAnswer as ErrorAnswer,
)
from service.schemas.base import (
    Grid as Grid,
)
from service.schemas.base import (
    ImageSize as ImageSize,
)
from service.schemas.base import (
    Origin as Origin,
)
from service.schemas.base import (
    Provenance as Provenance,
)
from service.schemas.base import (
    Score as Score,
)
from service.schemas.base import (
    parse_numbers as parse_numbers,
)
from service.schemas.evidence import (
    Border as Border,
)
from service.schemas.evidence import (
    Curve as Curve,
)
from service.schemas.evidence import (
    Evidence as Evidence,
)
from service.schemas.evidence import (
    Faithfulness as Faithfulness,
)
from service.schemas.explain import ExplainAnswer as ExplainAnswer
from service.schemas.filters import FiltersAnswer as FiltersAnswer
from service.schemas.filters import TemplateAnswer as TemplateAnswer
from service.schemas.jobs import (
    JobAnswer as JobAnswer,
)
from service.schemas.jobs import (
    JobResult as JobResult,
)
from service.schemas.jobs import (
    JobsAnswer as JobsAnswer,
)
from service.schemas.jobs import (
    SeveralAnswers as SeveralAnswers,
)
from service.schemas.predict import PredictAnswer as PredictAnswer
from service.schemas.split import PartAnswer as PartAnswer
from service.schemas.split import SplitAnswer as SplitAnswer
from service.schemas.trace import TraceAnswer as TraceAnswer
from service.schemas.trace import TracedChannel as TracedChannel
from service.schemas.trust import (
    CHECKS as CHECKS,
)
from service.schemas.trust import (
    Agreement as Agreement,
)
from service.schemas.trust import (
    Move as Move,
)
from service.schemas.trust import (
    Shifts as Shifts,
)
from service.schemas.trust import (
    StageAnswer as StageAnswer,
)
from service.schemas.trust import (
    TrustAnswer as TrustAnswer,
)
from service.schemas.whatif import Change as Change
from service.schemas.whatif import WhatIfAnswer as WhatIfAnswer
