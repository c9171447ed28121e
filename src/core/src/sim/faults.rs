//! What can go wrong, after Sieve (Sun et al., OSDI 2022): a crash around every write, a view that is behind, an event that
//! is lost; and besides, what is particular to GPUs and to leaders.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use super::objects::Of;

/// How many points there are in a course of events at which something can go wrong.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counts {
    pub writes: u32,
    /// Those of them that are a controller's.
    pub led: u32,
    pub calls: u32,
    pub events: u32,
    pub decisions: u32,
    /// The decisions to do something.
    pub acts: u32,
}

/// What a controller does not hear of for a while.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum View {
    Everything,
    Pods,
    Workloads,
    MigNodes,
}

impl View {
    pub const ALL: [Self; 4] = [Self::Everything, Self::Pods, Self::Workloads, Self::MigNodes];

    pub fn kinds(self) -> &'static [Of] {
        match self {
            Self::Everything => &Of::ALL,
            Self::Pods => &[Of::Pods],
            Self::Workloads => &[Of::Workloads],
            Self::MigNodes => &[Of::MigNodes],
        }
    }

    pub fn lasts(self) -> Duration {
        match self {
            Self::Everything => Duration::from_secs(8),
            _ => Duration::from_secs(3),
        }
    }
}

/// How much older the pods are that a controller sees after [`Fault::BackInTime`], and for how long it hears no more of them.
pub const BACK: Duration = Duration::from_secs(4);

/// When a leader wakes up that was frozen with its decisions made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wakes {
    Soon,
    Late,
}

impl Wakes {
    pub const ALL: [Self; 2] = [Self::Soon, Self::Late];

    pub fn after(self) -> Duration {
        match self {
            Self::Soon => Duration::from_secs(2),
            Self::Late => Duration::from_secs(25),
        }
    }
}

/// One thing that goes wrong, at the n-th point of its kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    CrashBeforeWrite(u32),
    CrashAfterWrite(u32),
    WriteFails(u32),
    AnswerLost(u32),
    /// A controller dies after a write, and the next one first sees pods as they were a while before. Its lists are consistent
    /// (`src/controller/watches.rs`), so this is none of [`Fault::all`]: giving back what a job has to spare relies on that.
    /// Dropping what is over does not.
    BackInTime(u32),
    CrashBeforeCall(u32),
    CrashAfterCall(u32),
    CallFails(u32),
    CallHangs(u32),
    EventLost(u32),
    StaleView(u32, View),
    OldLeader(u32, Wakes),
}

impl Fault {
    /// Everything that can go wrong once in a course of events. A view of one kind that is behind matters at any decision: each
    /// has its turn.
    pub fn all(counts: Counts) -> Vec<Self> {
        let mut all = Vec::new();
        for n in 1..=counts.writes {
            all.extend([
                Self::CrashBeforeWrite(n),
                Self::CrashAfterWrite(n),
                Self::WriteFails(n),
                Self::AnswerLost(n),
            ]);
        }
        for n in 1..=counts.calls {
            all.extend([
                Self::CrashBeforeCall(n),
                Self::CrashAfterCall(n),
                Self::CallFails(n),
                Self::CallHangs(n),
            ]);
        }
        all.extend((1..=counts.events).map(Self::EventLost));
        let turns = View::ALL.into_iter().cycle();
        all.extend((1..=counts.decisions).zip(turns).map(|(n, view)| Self::StaleView(n, view)));
        for n in 1..=counts.acts {
            all.extend(Wakes::ALL.map(|wakes| Self::OldLeader(n, wakes)));
        }
        all
    }

    fn parts(self) -> (&'static str, u32, String) {
        match self {
            Self::CrashBeforeWrite(n) => ("crash-before-write", n, String::new()),
            Self::CrashAfterWrite(n) => ("crash-after-write", n, String::new()),
            Self::WriteFails(n) => ("write-fails", n, String::new()),
            Self::AnswerLost(n) => ("answer-lost", n, String::new()),
            Self::BackInTime(n) => ("back-in-time", n, String::new()),
            Self::CrashBeforeCall(n) => ("crash-before-call", n, String::new()),
            Self::CrashAfterCall(n) => ("crash-after-call", n, String::new()),
            Self::CallFails(n) => ("call-fails", n, String::new()),
            Self::CallHangs(n) => ("call-hangs", n, String::new()),
            Self::EventLost(n) => ("event-lost", n, String::new()),
            Self::StaleView(n, view) => ("stale-view", n, format!("{view:?}")),
            Self::OldLeader(n, wakes) => ("old-leader", n, format!("{wakes:?}")),
        }
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, n, how) = self.parts();
        write!(f, "{what}:{n}")?;
        if how.is_empty() { Ok(()) } else { write!(f, ":{how}") }
    }
}

impl FromStr for Fault {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("{text:?} is no fault; they read as in crash-after-write:3 or stale-view:7:Pods");
        let n = text.split(':').nth(1).and_then(|n| n.parse().ok()).ok_or_else(wrong)?;
        let counts = Counts { writes: n, led: n, calls: n, events: n, decisions: 0, acts: n };
        let views = View::ALL.map(|view| Self::StaleView(n, view));
        let mut all = Self::all(counts).into_iter().chain(views).chain([Self::BackInTime(n)]);
        all.find(|fault| fault.to_string() == text).ok_or_else(wrong)
    }
}
