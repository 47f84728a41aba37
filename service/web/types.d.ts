// Shapes of the service's answers that the page reads (service/schemas) and of the page's own state.

export type Box = [number, number, number, number];
export type Cell = { row: number; col: number };
export type Size = { width: number; height: number };

export interface FieldAxis {
  start: number;
  size: number;
  jump: number;
}

export interface Block {
  name: string;
  shape: number[];
  field: { rows: FieldAxis; cols: FieldAxis; sees_all: boolean };
}

export interface NetworkSummary {
  input: [number, number, number];
  blocks: Block[];
}

export interface MethodNote {
  title: string;
  good_for: string;
  misleads: string;
  reads_block: boolean;
  default_block: string;
}

export interface ModelCard {
  model: string;
  version: string | null;
  backbone: string;
  digest: string;
  classes: string[];
  blocks: string[];
  cam_block: string;
  methods: string[];
  default_method: string;
  barred_methods: Record<string, string>;
  class_blind_methods: Record<string, string>;
  best_methods: { question: string; method: string | null; block: string | null; why: string }[];
  method_notes: Record<string, MethodNote>;
  dataset: { name?: string; digest?: string };
  metrics: Record<string, number>;
  limits: { max_body_bytes: number; max_jobs: number };
  reference_images: number | null;
  concepts: number | null;
  has_card: boolean;
}

export interface DriftRow {
  figure: string;
  psi: number;
  p_value: number;
  alarm: boolean;
  enough: boolean;
}

export interface DriftWindow {
  images: number;
  alarm: boolean;
  figures: DriftRow[];
}

export interface Colours {
  evidence: number[][];
  contrast: number[][];
}

export interface Curve {
  shares: number[];
  scores: number[];
  area: number;
}

export interface Faithfulness {
  verdict: string;
  percentile: number;
  deletion: Curve;
  insertion: Curve;
}

export interface Evidence {
  label: string;
  against: string | null;
  negative: boolean;
  status: string;
  method: string;
  block: string;
  unit: string;
  grid: { rows: number; cols: number; values: number[][]; min: number; max: number };
  full_scale: number | null;
  seen_box: Box;
  cell_px: [number, number];
  settings: Record<string, unknown>;
  overlay: string | null;
  sanity: string | null;
  border: { mass: number; suspicious: boolean } | null;
  faithfulness: Faithfulness | null;
}

/** A map with its place; all that drawing needs of evidence. */
export type PlacedMap = Pick<Evidence, "grid" | "full_scale" | "against" | "seen_box">;

export interface Concept {
  number: number;
  name: string;
  patches: string[];
}

export interface ConceptShare {
  number: number;
  name: string;
  share: number;
  score_without: number;
  label_without: string;
  strength: number;
  present: boolean;
  grid: Evidence["grid"];
}

export interface ConceptShares {
  image: Size;
  label: string;
  against: string | null;
  score: number;
  logit: number;
  base: number;
  rest: number;
  residual: number;
  predicted: string;
  seen_box: Box;
  concepts: ConceptShare[];
}

export interface Score {
  label: string;
  score: number;
}

export interface Suggestion {
  reason: string;
  options: Record<string, string>;
}

export interface ExplainAnswer {
  predictions: Score[];
  evidence: Evidence[];
  suggestions: Suggestion[];
  warnings: string[];
  cut: string[];
  image: Size & { view: string; seen_share: number };
  timing_ms: { total: number };
  provenance: {
    model: string;
    version: string | null;
    run_id: string | null;
    digest: string;
    backbone: string;
    engine: string;
    precision: string;
    image_sha256: string;
  };
}

export interface TrustAnswer extends ExplainAnswer {
  agreement: { verdict: string } | null;
  shifts: { verdict: string } | null;
  sweep: { evidence: Evidence; faithfulness: Faithfulness | null }[] | null;
}

export interface WhatIfAnswer {
  share: number;
  covered: string;
  changes: { label: string; before: number; after: number; change: number }[];
}

export interface ActivationsAnswer {
  activations: {
    block: string;
    shape: number[];
    zero_share: number;
    max: number;
    strongest: { index: number }[];
  }[];
}

export interface JobStatus {
  id: string;
  state: string;
  progress: number;
  eta_seconds: number | null;
  error: string | null;
}

/** A type, not an interface: only those are sets of named fields, as a form is. */
export type Question = {
  target: string;
  against: string;
  negative: boolean;
  method: string;
  block: string;
  flip: boolean;
};

/** A map that is empty, and what is shown instead of it. */
export interface Instead {
  label: string;
  status: string;
  reason: string;
}

export interface ChosenImage {
  blob: Blob;
  name: string;
  /** null where the browser cannot decode it */
  bitmap: ImageBitmap | null;
  /** the service's own drawing, where there is no bitmap */
  drawn?: HTMLImageElement;
}

export interface View {
  opacity: number;
  fade: number;
  show: boolean;
  cell: Cell | null;
  box: Box | null;
}

export type Fields = Record<string, string | number | boolean | null | undefined>;
