"""The JSON shapes of the answers, one file for each operation; all of them can be had from here."""

from service.schemas.activations import (
    ActivationsAnswer as ActivationsAnswer,
    BlockAnswer as BlockAnswer,
    ChannelAnswer as ChannelAnswer,
)
from service.schemas.base import (
    About as About,
    Answer as Answer,
    Box as Box,
    ErrorAnswer as ErrorAnswer,
    Grid as Grid,
    ImageSize as ImageSize,
    Origin as Origin,
    Provenance as Provenance,
    Score as Score,
    parse_numbers as parse_numbers,
)
from service.schemas.concepts import (
    ConceptAnswer as ConceptAnswer,
    ConceptsAnswer as ConceptsAnswer,
    ConceptShareAnswer as ConceptShareAnswer,
    ConceptSharesAnswer as ConceptSharesAnswer,
)
from service.schemas.evidence import (
    Border as Border,
    Curve as Curve,
    Evidence as Evidence,
    Faithfulness as Faithfulness,
    SuggestionAnswer as SuggestionAnswer,
)
from service.schemas.explain import ExplainAnswer as ExplainAnswer
from service.schemas.filters import FiltersAnswer as FiltersAnswer, TemplateAnswer as TemplateAnswer
from service.schemas.jobs import (
    JobAnswer as JobAnswer,
    JobResult as JobResult,
    JobsAnswer as JobsAnswer,
    SeveralAnswers as SeveralAnswers,
)
from service.schemas.predict import NoveltyAnswer as NoveltyAnswer, PredictAnswer as PredictAnswer
from service.schemas.split import PartAnswer as PartAnswer, SplitAnswer as SplitAnswer
from service.schemas.trace import TraceAnswer as TraceAnswer, TracedChannel as TracedChannel
from service.schemas.trust import (
    CHECKS as CHECKS,
    Agreement as Agreement,
    Move as Move,
    Shifts as Shifts,
    StageAnswer as StageAnswer,
    TrustAnswer as TrustAnswer,
)
from service.schemas.whatif import Change as Change, WhatIfAnswer as WhatIfAnswer
