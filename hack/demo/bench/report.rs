//! The figures: a table, JSON, the goals.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::{MEASURED, Setting};
use crate::node::steps::Step;
use crate::percentile;

/// The steps of the table, in order; a Job without Slicegate has few of them.
const STEPS: [Step; 8] = [
    Step::Reserved,
    Step::Claimed,
    Step::Made,
    Step::Acknowledged,
    Step::Shown,
    Step::Ready,
    Step::Bound,
    Step::Running,
];
/// Median of Job created → container running with a slice that must be made, NVML's latencies included.
const MADE: Duration = Duration::from_millis(1500);
/// From the kubelet's having a slice to the Node's showing it.
const SHOWN: Duration = Duration::from_millis(100);
/// Median with a slice that is there, against that without Slicegate.
const REUSED: f64 = 1.2;

/// What the Jobs of a row find.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// No slice: one is made.
    Made,
    /// An idle slice.
    Reused,
    /// No Slicegate.
    Plain,
}

/// The Jobs of one kind.
pub struct Row {
    /// What they find.
    pub kind: Kind,
    /// How the agent runs.
    pub setting: Setting,
    /// How often NVML was called to make or destroy something.
    pub nvml_calls: u64,
    /// The steps of each.
    pub runs: Vec<BTreeMap<Step, Duration>>,
}

/// All rows.
pub struct Report {
    rows: Vec<Row>,
    goals: Vec<Goal>,
}

struct Goal {
    what: &'static str,
    found: String,
    limit: String,
    reached: bool,
}

impl Report {
    /// Judges the rows.
    pub fn new(rows: Vec<Row>) -> Self {
        let goals = goals(&rows);
        Self { rows, goals }
    }

    /// For people.
    pub fn table(&self) -> String {
        let mut text = "Milliseconds of each step since the one before, and from Job created to container running: p50/p99\n".to_owned();
        let _ = write!(text, "\n{:<34}{:>3}", "", "N");
        for step in STEPS {
            let _ = write!(text, "{:>13}", format!("{step:?}").to_uppercase());
        }
        let _ = writeln!(text, "{:>13}{:>6}", "TOTAL", "NVML");
        let mut before = None;
        for row in &self.rows {
            if before.replace(row.setting) != Some(row.setting) {
                let _ = writeln!(text, "{}", row.setting.name());
            }
            let _ = write!(text, "  {:<32}{:>3}", row.kind.name(), row.runs.len());
            for step in STEPS {
                let _ = write!(text, "{:>13}", pair(&row.since_before(step)));
            }
            let _ = writeln!(text, "{:>13}{:>6}", pair(&row.totals()), row.nvml_calls);
        }
        let plain = self.plain();
        let at = |p| percentile(&plain, p).as_millis();
        let _ = writeln!(
            text,
            "\nThe machine: the same Job without Slicegate took {} / {} / {} ms (min / median / max of {}) on {} cores.",
            at(0),
            at(50),
            at(100),
            plain.len(),
            std::thread::available_parallelism().map_or(0, usize::from)
        );
        let _ = writeln!(
            text,
            "Running: the container's first line. NVML: calls that make or destroy, by the agent's metric.\n"
        );
        for goal in &self.goals {
            let verdict = if goal.reached { "reached" } else { "missed" };
            let _ = writeln!(text, "goal: {} {}, found {}: {verdict}", goal.what, goal.limit, goal.found);
        }
        text
    }

    /// For programs: every single time.
    pub fn json(&self) -> Value {
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                let steps = STEPS.iter().map(|step| (format!("{step:?}"), summary(&row.since_before(*step))));
                let run = |run: &BTreeMap<Step, Duration>| -> BTreeMap<String, f64> {
                    run.iter().map(|(step, at)| (format!("{step:?}"), ms(*at))).collect()
                };
                json!({
                    "kind": format!("{:?}", row.kind),
                    "nvmlLatencies": row.setting.latencies,
                    "earlyPatch": row.setting.early_patch,
                    "nvmlCalls": row.nvml_calls,
                    "sinceStepBeforeMs": steps.collect::<BTreeMap<_, _>>(),
                    "totalMs": summary(&row.totals()),
                    "sinceCreatedMs": row.runs.iter().map(run).collect::<Vec<_>>(),
                })
            })
            .collect();
        let goals: Vec<Value> = self
            .goals
            .iter()
            .map(|g| json!({"goal": g.what, "limit": g.limit, "found": g.found, "reached": g.reached}))
            .collect();
        json!({
            "cores": std::thread::available_parallelism().map_or(0, usize::from),
            "nvmlLatencyMs": MEASURED.into_iter().collect::<BTreeMap<_, _>>(),
            "rows": rows,
            "goals": goals,
            "withoutSlicegateMs": summary(&self.plain()),
        })
    }

    /// In one line.
    pub fn summary(&self) -> String {
        let missed: Vec<&str> =
            self.goals.iter().filter(|goal| !goal.reached).map(|goal| goal.what).collect();
        let found: Vec<String> =
            self.goals.iter().map(|goal| format!("{} {}", goal.what, goal.found)).collect();
        let verdict =
            if missed.is_empty() { "ok".to_owned() } else { format!("missed: {}", missed.join(", ")) };
        format!("{verdict}: {}", found.join("; "))
    }

    fn plain(&self) -> Vec<Duration> {
        self.rows.iter().filter(|row| row.kind == Kind::Plain).flat_map(Row::totals).collect()
    }
}

impl Row {
    /// The time of a step since the one before it that the Job has taken.
    fn since_before(&self, step: Step) -> Vec<Duration> {
        let since = |run: &BTreeMap<Step, Duration>| {
            let before = run.range(..step).next_back().map_or(Duration::ZERO, |(_, at)| *at);
            Some(run.get(&step)?.saturating_sub(before))
        };
        self.runs.iter().filter_map(since).collect()
    }

    fn totals(&self) -> Vec<Duration> {
        self.runs.iter().filter_map(|run| run.get(&Step::Running).copied()).collect()
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Self::Made => "slice made",
            Self::Reused => "slice reused",
            Self::Plain => "without Slicegate",
        }
    }
}

fn goals(rows: &[Row]) -> Vec<Goal> {
    let shipped = |kind| rows.iter().filter(move |row| row.setting.early_patch && row.kind == kind);
    let slow: Vec<Duration> =
        shipped(Kind::Made).filter(|row| row.setting.latencies).flat_map(Row::totals).collect();
    let made = percentile(&slow, 50);
    let to_schedulable: Vec<Duration> =
        shipped(Kind::Made).flat_map(|row| row.since_before(Step::Shown)).collect();
    let shown = percentile(&to_schedulable, 99);
    let calls: u64 = rows.iter().filter(|row| row.kind == Kind::Reused).map(|row| row.nvml_calls).sum();
    let median = |kind| percentile(&shipped(kind).flat_map(Row::totals).collect::<Vec<_>>(), 50);
    let ratio = median(Kind::Reused).as_secs_f64() / median(Kind::Plain).as_secs_f64();
    vec![
        Goal {
            what: "Job created → running, slice made, p50",
            found: format!("{} ms", made.as_millis()),
            limit: format!("≤ {} ms", MADE.as_millis()),
            reached: made <= MADE && !slow.is_empty(),
        },
        Goal {
            what: "kubelet has it → schedulable, p99",
            found: format!(
                "{} ms (p50 {} ms)",
                shown.as_millis(),
                percentile(&to_schedulable, 50).as_millis()
            ),
            limit: format!("≤ {} ms", SHOWN.as_millis()),
            reached: shown <= SHOWN && !to_schedulable.is_empty(),
        },
        Goal {
            what: "NVML calls for reused slices",
            found: calls.to_string(),
            limit: "0".to_owned(),
            reached: calls == 0,
        },
        Goal {
            what: "slice reused / without Slicegate, p50",
            found: format!("{ratio:.2}"),
            limit: format!("≤ {REUSED}"),
            reached: ratio <= REUSED,
        },
    ]
}

fn pair(times: &[Duration]) -> String {
    if times.is_empty() {
        return "-".to_owned();
    }
    format!("{}/{}", percentile(times, 50).as_millis(), percentile(times, 99).as_millis())
}

fn summary(times: &[Duration]) -> Value {
    let at = |p| ms(percentile(times, p));
    json!({"samples": times.len(), "min": at(0), "p50": at(50), "p99": at(99), "max": at(100)})
}

/// Milliseconds, to a thousandth.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
