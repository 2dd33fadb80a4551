//! The list: every place, what is done there and what is not.
//!
//! Invariants: one call of [`crate::pass`] a place; names are `<process>/<kebab-case>`. A place here that no test kills
//! its process at fails the tests in `tests/tests/edges.rs`.

/// Who runs into a failpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Process {
    /// `mcl coordinator`.
    Coordinator,
    /// `mcl checkpoint-server`.
    Checkpoint,
    /// `mcl worker`.
    Worker,
    /// `mcl-rank train`.
    Rank,
}

macro_rules! failpoints {
    ($($(#[$doc:meta])* $point:ident = $process:ident $name:literal,)*) => {
        /// Where.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Failpoint {
            $($(#[$doc])* $point,)*
        }

        impl Failpoint {
            /// All of them.
            pub const ALL: &'static [Self] = &[$(Self::$point,)*];

            /// As the variable names it.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$point => $name,)*
                }
            }

            /// Whose it is.
            pub const fn process(self) -> Process {
                match self {
                    $(Self::$point => Process::$process,)*
                }
            }
        }
    };
}

failpoints! {
    /// The run directory is locked, the next term not taken.
    BeforeJournalTerm = Coordinator "coordinator/before-journal-term",
    /// The next term is taken, nobody heard of it.
    AfterJournalTerm = Coordinator "coordinator/after-journal-term",
    /// The checkpoint service knows the term, the coordinator has done nothing in it.
    TermAnnounced = Coordinator "coordinator/term-announced",
    /// `job.toml` is written, the job not accepted.
    BeforeJournalJob = Coordinator "coordinator/before-journal-job",
    /// The job is accepted, no worker heard of it.
    AfterJournalJob = Coordinator "coordinator/after-journal-job",
    /// The job is accepted, whoever submitted it was not told.
    BeforeSubmitAnswer = Coordinator "coordinator/before-submit-answer",
    /// A job is to wait for its turn, the queue does not have it.
    BeforeJournalQueued = Coordinator "coordinator/before-journal-queued",
    /// The queue has it, whoever submitted it was not told.
    AfterJournalQueued = Coordinator "coordinator/after-journal-queued",
    /// A job is to leave the queue without being run, the queue still has it.
    BeforeJournalDequeued = Coordinator "coordinator/before-journal-dequeued",
    /// It has left, nobody was told.
    AfterJournalDequeued = Coordinator "coordinator/after-journal-dequeued",
    /// The ledger is durable, the next generation not formed.
    BeforeJournalFormed = Coordinator "coordinator/before-journal-formed",
    /// A generation is formed, none of its ranks heard of it.
    AfterJournalFormed = Coordinator "coordinator/after-journal-formed",
    /// Steps that a survivor recounted are appended, not durable.
    RecountAppended = Coordinator "coordinator/recount-appended",
    /// The ledger is durable, the choice of state and first step is not.
    BeforeJournalStarted = Coordinator "coordinator/before-journal-started",
    /// The choice is durable: neither rolled back in the ledger, nor told.
    AfterJournalStarted = Coordinator "coordinator/after-journal-started",
    /// The roll back is appended to the ledger, not durable.
    RollBackAppended = Coordinator "coordinator/roll-back-appended",
    /// The roll back is durable, the metrics still have the rows.
    RollBackSynced = Coordinator "coordinator/roll-back-synced",
    /// The rows are in the file of rolled back rows, and still in the metrics.
    RollBackRowsMoved = Coordinator "coordinator/roll-back-rows-moved",
    /// The ledger says that a generation resumed, none of its ranks was told to.
    ResumedAppended = Coordinator "coordinator/resumed-appended",
    /// A committed step's metrics row is appended, its ledger line not.
    MetricsAppended = Coordinator "coordinator/metrics-appended",
    /// Both are appended, neither is durable.
    LedgerAppended = Coordinator "coordinator/ledger-appended",
    /// The rows are durable, the ledger lines not.
    MetricsSynced = Coordinator "coordinator/metrics-synced",
    /// Both are durable, no rank was told.
    LedgerSynced = Coordinator "coordinator/ledger-synced",
    /// The ledger covers a staged checkpoint, the service was not asked to commit it.
    BeforeCommitAsked = Coordinator "coordinator/before-commit-asked",
    /// The service answered that a checkpoint is visible, nobody here knows.
    CommitAnswered = Coordinator "coordinator/commit-answered",
    /// The core knows of a visible checkpoint, the journal does not.
    BeforeJournalCheckpoint = Coordinator "coordinator/before-journal-checkpoint",
    /// The journal knows it, no rank was told.
    AfterJournalCheckpoint = Coordinator "coordinator/after-journal-checkpoint",
    /// A generation is over, the journal says that it trains.
    BeforeJournalEnded = Coordinator "coordinator/before-journal-ended",
    /// The journal says that it is over, its ranks were not told.
    AfterJournalEnded = Coordinator "coordinator/after-journal-ended",
    /// Ranks are to stop at a boundary, the journal does not know.
    BeforeJournalDrain = Coordinator "coordinator/before-journal-drain",
    /// The journal knows it, no rank was told.
    AfterJournalDrain = Coordinator "coordinator/after-journal-drain",
    /// The job is to be held or to go on, the journal does not know.
    BeforeJournalHeld = Coordinator "coordinator/before-journal-held",
    /// The journal knows it, no rank was told.
    AfterJournalHeld = Coordinator "coordinator/after-journal-held",
    /// The ledger says that the job was interrupted, the journal does not.
    InterruptedAppended = Coordinator "coordinator/interrupted-appended",
    /// The job is over, the journal does not know.
    BeforeJournalOver = Coordinator "coordinator/before-journal-over",
    /// The journal knows it, no worker was told.
    AfterJournalOver = Coordinator "coordinator/after-journal-over",

    /// A higher token came, it is not durable.
    BeforeFence = Checkpoint "checkpoint/before-fence",
    /// It is durable, nothing was done under it.
    AfterFence = Checkpoint "checkpoint/after-fence",
    /// A term stands, its coordinator was not told.
    BeforeTermAnswer = Checkpoint "checkpoint/before-term-answer",
    /// A slice is written beside its place, its ticket not.
    BeforeTicket = Checkpoint "checkpoint/before-ticket",
    /// The ticket is durable, the slice not in its place.
    AfterTicket = Checkpoint "checkpoint/after-ticket",
    /// The slice is staged, its rank was not told.
    BeforeSliceAnswer = Checkpoint "checkpoint/before-slice-answer",
    /// All slices are verified, the checkpoint is not visible.
    BeforeManifest = Checkpoint "checkpoint/before-manifest",
    /// It is visible, its folder not tidied.
    AfterManifest = Checkpoint "checkpoint/after-manifest",
    /// An old checkpoint's manifest is removed, its slices are there.
    PruneManifestRemoved = Checkpoint "checkpoint/prune-manifest-removed",
    /// One of its slices is removed, the others are there.
    PruneSliceRemoved = Checkpoint "checkpoint/prune-slice-removed",
    /// One step is removed, others may be left.
    PruneStepRemoved = Checkpoint "checkpoint/prune-step-removed",
    /// A checkpoint is visible and older ones are gone, the coordinator was not told.
    BeforeCommitAnswer = Checkpoint "checkpoint/before-commit-answer",

    /// A higher token came, it is not durable.
    BeforeToken = Worker "worker/before-token",
    /// It is durable, nothing was done under it.
    AfterToken = Worker "worker/after-token",
    /// What ranks said is in the outbox, not sent.
    BeforeReport = Worker "worker/before-report",
    /// It is handed to the stream.
    AfterReport = Worker "worker/after-report",

    /// Between connecting to the store and forming the group.
    Rendezvous = Rank "rank/rendezvous",
    /// Between two parts of a state on its way to other ranks.
    StateTransfer = Rank "rank/state-transfer",
    /// Before a step's forward pass.
    Forward = Rank "rank/forward",
    /// In the backward pass, half of the gradients there.
    MidBackward = Rank "rank/mid-backward",
    /// All gradients reduced, nothing updated.
    BeforeUpdate = Rank "rank/before-update",
    /// Online weights updated, momentum encoder and buffers not.
    MidUpdate = Rank "rank/mid-update",
    /// The step is applied and nobody was told.
    AfterUpdateBeforeReport = Rank "rank/after-update-before-report",
    /// The slice is staged and nobody was told.
    StagedBeforeReport = Rank "rank/staged-before-report",
}

impl Failpoint {
    /// Those of a process.
    pub fn of(process: Process) -> impl Iterator<Item = Self> {
        Self::ALL.iter().copied().filter(move |point| point.process() == process)
    }

    /// The one of this name.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().copied().find(|point| point.name() == name)
    }
}
