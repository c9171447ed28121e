//! The figures: tables, JSON, the goals.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::time::Duration;

use serde_json::{Value, json};

use super::alone::Alone;
use super::burst::{Burst, PODS, SUBMITTERS};
use super::preemption::Preemptions;
use super::writes::{KINDS, Writes};
use super::{Extent, SETTINGS, Setting, stage};
use crate::percentile;

/// Time to all admitted, with Slicegate against without.
const RATIO: f64 = 1.10;
/// What Slicegate adds to a workload's admission: median and 99th percentile.
const ADDED: [Duration; 2] = [Duration::from_millis(100), Duration::from_millis(400)];
/// Writes for a one-pod Job: MIGNode spec, MIGNode status, check, pod.
const WRITES: f64 = 4.0;
/// What the bursts' added latency and ratio are judged by: what a cluster in use finds.
const JUDGED: Setting = Setting::Reused;

/// All that was measured.
pub struct Report {
    jobs: usize,
    rate: f64,
    /// The bursts.
    pub bursts: Vec<Burst>,
    /// Jobs by themselves.
    pub alone: Vec<Alone>,
    /// Preemptions.
    pub preemptions: Vec<Preemptions>,
}

struct Goal {
    what: &'static str,
    found: String,
    limit: String,
    reached: bool,
}

impl Report {
    /// Nothing yet.
    pub fn new(extent: &Extent) -> Self {
        Self {
            jobs: extent.jobs,
            rate: extent.rate,
            bursts: Vec::new(),
            alone: Vec::new(),
            preemptions: Vec::new(),
        }
    }

    /// For people.
    pub fn text(&self) -> String {
        let mut text = format!(
            "{} one-pod Jobs and {} {PODS}-pod Jobs, {}, on {} emulated nodes of 8 A100-80GB, {} cores:\n\n",
            self.jobs,
            self.jobs / PODS,
            if self.rate > 0.0 {
                format!("{} submitted a second", self.rate)
            } else {
                format!("submitted by {SUBMITTERS} clients as fast as they are taken")
            },
            stage::NODES,
            cores()
        );
        self.write_bursts(&mut text);
        self.write_alone(&mut text);
        self.write_writes(&mut text);
        self.write_load(&mut text);
        self.write_preemptions(&mut text);
        for goal in self.goals() {
            let verdict = if goal.reached { "reached" } else { "missed" };
            let _ = writeln!(text, "goal: {} {}, found {}: {verdict}", goal.what, goal.limit, goal.found);
        }
        text
    }

    fn write_bursts(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "{:<26}{:>5}{:>22}{:>22}{:>18}{:>18}{:>18}",
            "", "RUNS", "ALL ADMITTED", "RATIO", "RESERVED→READY", "READY→ADMITTED", "RESERVED→ADMITTED"
        );
        let _ = writeln!(
            text,
            "{:<26}{:>5}{:>22}{:>22}{:>18}{:>18}{:>18}",
            "", "", "s, median [min–max]", "median [min–max]", "ms, p50/p99", "ms, p50/p99", "ms, p50/p99"
        );
        for setting in SETTINGS {
            let bursts: Vec<&Burst> = self.of(setting).collect();
            if bursts.is_empty() {
                continue;
            }
            let seconds: Vec<f64> = bursts.iter().map(|b| b.admitted.as_secs_f64()).collect();
            let ratio = match setting {
                Setting::Plain => "1".to_owned(),
                _ => spread(&self.ratios(setting), 2),
            };
            let all = |times: fn(&Burst) -> &[Duration]| -> Vec<Duration> {
                bursts.iter().flat_map(|b| times(b)).copied().collect()
            };
            let _ = writeln!(
                text,
                "{:<26}{:>5}{:>22}{:>22}{:>18}{:>18}{:>18}",
                setting.name(),
                bursts.len(),
                spread(&seconds, 1),
                ratio,
                pair(&all(|b| &b.to_ready)),
                pair(&bursts.iter().flat_map(|b| b.ready_to_admitted()).collect::<Vec<_>>()),
                pair(&all(|b| &b.to_admitted)),
            );
        }
        text.push_str(
            "Ratio: against the burst without a check in the same round. Without a check Kueue reserves and admits in one write; \
             what\nthe least check takes is Kueue's own price of a check.\n\n",
        );
    }

    fn write_alone(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "One-pod Jobs, one after another\n{:<26}{:>5}{:>22}{:>18}{:>18}{:>18}",
            "", "N", "SUBMITTED→ADMITTED", "RESERVED→READY", "READY→ADMITTED", "RESERVED→ADMITTED"
        );
        for alone in &self.alone {
            let _ = writeln!(
                text,
                "{:<26}{:>5}{:>22}{:>18}{:>18}{:>18}",
                alone.setting.name(),
                alone.since_submitted.len(),
                pair(&alone.since_submitted),
                pair(&alone.to_ready),
                pair(&rest(&alone.to_admitted, &alone.to_ready)),
                pair(&alone.to_admitted),
            );
        }
        text.push('\n');
    }

    fn write_writes(&self, text: &mut String) {
        let ours: Vec<Setting> = SETTINGS.into_iter().filter(|s| s.is_ours()).collect();
        let _ = write!(text, "{:<16}", "Our writes");
        for setting in &ours {
            let _ = write!(text, "{:>34}", setting.name());
        }
        let _ = write!(text, "\n{:<16}", "per Job");
        for _ in &ours {
            let _ = write!(text, "{:>17}{:>17}", "alone", "in a burst");
        }
        text.push('\n');
        let columns: Vec<(f64, Writes, Writes)> =
            ours.iter().flat_map(|s| [self.writes_alone(*s), self.writes_in_bursts(*s)]).collect();
        let named: BTreeSet<&str> = KINDS.iter().map(|(kind, _)| *kind).collect();
        let seen = columns.iter().flat_map(|(_, there, back)| there.keys().chain(back.keys()));
        let others: BTreeSet<&str> = seen.map(String::as_str).filter(|kind| !named.contains(kind)).collect();
        let why: BTreeMap<&str, &str> = KINDS.into_iter().collect();
        for kind in KINDS.iter().map(|(kind, _)| *kind).chain(others) {
            let _ = write!(text, "{kind:<16}");
            for (jobs, there, back) in &columns {
                let cell = format!("{:.2} + {:.2}", per(there, kind, *jobs), per(back, kind, *jobs));
                let _ = write!(text, "{cell:>17}");
            }
            let _ = writeln!(text, "  {}", why.get(kind).unwrap_or(&""));
        }
        let _ = write!(text, "{:<16}", "all");
        for (jobs, there, back) in &columns {
            let cell = format!("{:.2} + {:.2}", total(there, *jobs), total(back, *jobs));
            let _ = write!(text, "{cell:>17}");
        }
        let _ = writeln!(
            text,
            "\nUntil the pods run + until everything is given back, by the API server's audit log; in a burst a Job has {:.1} pods. {}\n",
            self.pods() / self.workloads(),
            self.cross_check()
        );
        self.write_everybodys(text);
    }

    /// All writes of the cluster: what a check makes others write.
    fn write_everybodys(&self, text: &mut String) {
        let of = |setting: Setting| {
            let bursts: Vec<&Burst> = self.of(setting).collect();
            let mut sum = Writes::new();
            for (what, count) in bursts.iter().flat_map(|b| &b.everybodys) {
                *sum.entry(what.clone()).or_default() += count;
            }
            (self.workloads() * as_f64(bursts.len()), sum)
        };
        let columns: Vec<(Setting, (f64, Writes))> =
            SETTINGS.into_iter().map(|s| (s, of(s))).filter(|(_, (jobs, _))| *jobs > 0.0).collect();
        let kinds: BTreeSet<&String> = columns.iter().flat_map(|(_, (_, sum))| sum.keys()).collect();
        let mut kinds: Vec<&String> = kinds.into_iter().collect();
        let most =
            |kind: &str| columns.iter().map(|(_, (_, sum))| sum.get(kind).unwrap_or(&0)).max().copied();
        kinds.sort_by_key(|kind| std::cmp::Reverse(most(kind)));
        let _ = write!(text, "{:<26}", "Everybody's, per Job");
        for (setting, _) in &columns {
            let _ = write!(text, "{:>25}", setting.name());
        }
        text.push('\n');
        for kind in kinds.into_iter().filter(|kind| most(kind).unwrap_or(0) > 100) {
            let _ = write!(text, "  {kind:<24}");
            for (_, (jobs, sum)) in &columns {
                let _ = write!(text, "{:>25.2}", per(sum, kind, *jobs));
            }
            text.push('\n');
        }
        let _ = write!(text, "  {:<24}", "all");
        for (_, (jobs, sum)) in &columns {
            let _ = write!(text, "{:>25.2}", total(sum, *jobs));
        }
        text.push_str("\nUntil all pods run, by the API server's metric apiserver_request_total.\n\n");
    }

    fn write_load(&self, text: &mut String) {
        let parts: BTreeSet<&str> = self.bursts.iter().flat_map(|b| b.load.keys().copied()).collect();
        let _ = write!(text, "{:<26}", "Processor time of a burst");
        for setting in SETTINGS {
            let _ = write!(text, "{:>25}", setting.name());
        }
        text.push('\n');
        for part in parts {
            let _ = write!(text, "  {part:<24}");
            for setting in SETTINGS {
                let times: Vec<f64> = self.of(setting).filter_map(|b| b.load.get(part)).copied().collect();
                let _ = write!(text, "{:>25}", spread(&times, 1));
            }
            text.push('\n');
        }
        let _ = writeln!(
            text,
            "Seconds until all pods run, median [min–max]; others: what else ran on the machine. Of {} cores.\n",
            cores()
        );
    }

    fn write_preemptions(&self, text: &mut String) {
        let _ = writeln!(
            text,
            "Preemption by priority    {:>5}{:>22}{:>22}{:>22}",
            "N", "GONE→RESERVED", "→READY", "GONE→READY"
        );
        for p in &self.preemptions {
            let _ = writeln!(
                text,
                "{:<26}{:>5}{:>22}{:>22}{:>22}",
                p.kind.name(),
                p.total.len(),
                pair(&p.to_reserved),
                pair(&p.to_ready),
                pair(&p.total)
            );
        }
        text.push_str(
            "ms, p50/p99, from the end of the last pod that is preempted; until quota is reserved for the preemptor it is Kueue's time.\n\n",
        );
    }

    /// For programs: every single time.
    pub fn json(&self) -> Value {
        let burst = |b: &Burst| {
            json!({
                "setting": format!("{:?}", b.setting),
                "round": b.round,
                "allAdmittedMs": ms(b.admitted),
                "allRunningMs": ms(b.running),
                "submittedToAdmittedMs": b.since_submitted.iter().map(|t| ms(*t)).collect::<Vec<_>>(),
                "reservedToReadyMs": b.to_ready.iter().map(|t| ms(*t)).collect::<Vec<_>>(),
                "reservedToAdmittedMs": b.to_admitted.iter().map(|t| ms(*t)).collect::<Vec<_>>(),
                "writes": b.writes,
                "writesToGiveBack": b.writes_back,
                "everybodysWrites": b.everybodys,
                "processorSeconds": b.load,
            })
        };
        let alone = |a: &Alone| {
            json!({
                "setting": format!("{:?}", a.setting),
                "submittedToAdmittedMs": a.since_submitted.iter().map(|t| ms(*t)).collect::<Vec<_>>(),
                "reservedToReadyMs": a.to_ready.iter().map(|t| ms(*t)).collect::<Vec<_>>(),
                "reservedToAdmittedMs": a.to_admitted.iter().map(|t| ms(*t)).collect::<Vec<_>>(),
                "writes": a.writes,
                "writesToGiveBack": a.writes_back,
            })
        };
        let preemptions = |p: &Preemptions| {
            json!({
                "kind": format!("{:?}", p.kind),
                "goneToReservedMs": p.to_reserved.iter().map(|t| ms(*t)).collect::<Vec<_>>(),
                "toReadyMs": p.to_ready.iter().map(|t| ms(*t)).collect::<Vec<_>>(),
                "goneToReadyMs": p.total.iter().map(|t| ms(*t)).collect::<Vec<_>>(),
            })
        };
        let goal =
            |g: &Goal| json!({"goal": g.what, "limit": g.limit, "found": g.found, "reached": g.reached});
        json!({
            "cores": cores(),
            "nodes": stage::NODES,
            "onePodJobs": self.jobs,
            "tenPodJobs": self.jobs / PODS,
            "rate": self.rate,
            "bursts": self.bursts.iter().map(burst).collect::<Vec<_>>(),
            "alone": self.alone.iter().map(alone).collect::<Vec<_>>(),
            "preemptions": self.preemptions.iter().map(preemptions).collect::<Vec<_>>(),
            "goals": self.goals().iter().map(goal).collect::<Vec<_>>(),
        })
    }

    /// In one line.
    pub fn summary(&self) -> String {
        let goals = self.goals();
        let missed: Vec<&str> = goals.iter().filter(|goal| !goal.reached).map(|goal| goal.what).collect();
        let found: Vec<String> = goals.iter().map(|goal| format!("{} {}", goal.what, goal.found)).collect();
        let verdict =
            if missed.is_empty() { "ok".to_owned() } else { format!("missed: {}", missed.join(", ")) };
        format!("{verdict}: {}", found.join("; "))
    }

    fn goals(&self) -> Vec<Goal> {
        let ratios = self.ratios(JUDGED);
        let ratio = median(&ratios);
        let added: Vec<Duration> = self.of(JUDGED).flat_map(|b| &b.to_admitted).copied().collect();
        let [p50, p99] = [50, 99].map(|p| percentile(&added, p));
        let (jobs, writes, _) = self.writes_alone(JUDGED);
        let writes = total(&writes, jobs);
        let gone: Vec<Duration> = self.preemptions.iter().flat_map(|p| &p.total).copied().collect();
        let mut goals = vec![
            Goal {
                what: "all admitted, with/without",
                found: spread(&ratios, 2),
                limit: format!("≤ {RATIO:.2}"),
                reached: !ratios.is_empty() && ratio <= RATIO,
            },
            Goal {
                what: "added latency p50",
                found: format!("{} ms", p50.as_millis()),
                limit: format!("≤ {} ms", ADDED[0].as_millis()),
                reached: !added.is_empty() && p50 <= ADDED[0],
            },
            Goal {
                what: "added latency p99",
                found: format!("{} ms", p99.as_millis()),
                limit: format!("≤ {} ms", ADDED[1].as_millis()),
                reached: !added.is_empty() && p99 <= ADDED[1],
            },
            Goal {
                what: "writes per one-pod Job",
                found: format!("{writes:.2}"),
                limit: format!("≤ {WRITES}"),
                reached: jobs > 0.0 && writes <= WRITES,
            },
        ];
        goals.push(Goal {
            what: "last pod gone → preemptor Ready",
            found: format!("p50 {} ms, p99 {} ms", at(&gone, 50), at(&gone, 99)),
            limit: "(no limit)".to_owned(),
            reached: !gone.is_empty(),
        });
        goals
    }

    fn of(&self, setting: Setting) -> impl Iterator<Item = &Burst> {
        self.bursts.iter().filter(move |burst| burst.setting == setting)
    }

    /// Time to all admitted against that without a check in the same round.
    fn ratios(&self, setting: Setting) -> Vec<f64> {
        let plain = |round| self.of(Setting::Plain).find(|burst| burst.round == round);
        self.of(setting)
            .filter_map(|b| Some(b.admitted.as_secs_f64() / plain(b.round)?.admitted.as_secs_f64()))
            .collect()
    }

    fn workloads(&self) -> f64 {
        as_f64(self.jobs + self.jobs / PODS)
    }

    fn pods(&self) -> f64 {
        as_f64(self.jobs + self.jobs / PODS * PODS)
    }

    fn writes_alone(&self, setting: Setting) -> (f64, Writes, Writes) {
        let found = self.alone.iter().find(|alone| alone.setting == setting);
        found
            .map(|a| (as_f64(a.to_admitted.len()), a.writes.clone(), a.writes_back.clone()))
            .unwrap_or_default()
    }

    fn writes_in_bursts(&self, setting: Setting) -> (f64, Writes, Writes) {
        let (mut jobs, mut there, mut back) = (0.0, Writes::new(), Writes::new());
        for burst in self.of(setting) {
            jobs += self.workloads();
            for (sum, more) in [(&mut there, &burst.writes), (&mut back, &burst.writes_back)] {
                for (what, count) in more {
                    *sum.entry(what.clone()).or_default() += count;
                }
            }
        }
        (jobs, there, back)
    }

    /// What only we write must be the same number in the audit log and in the API server's metrics.
    fn cross_check(&self) -> String {
        let (mut audited, mut counted) = (0, 0);
        for burst in self.bursts.iter().filter(|b| b.setting.is_ours()) {
            let sum = |writes: &Writes, kinds: [&str; 2]| -> u64 {
                kinds.iter().filter_map(|k| writes.get(*k)).sum()
            };
            audited += sum(&burst.writes, ["MIGNode spec", "MIGNode status"]);
            counted += sum(&burst.everybodys, ["mignodes", "mignodes/status"]);
        }
        format!(
            "Writes of MIGNodes, which nobody else writes: {audited} by the log, {counted} by apiserver_request_total."
        )
    }
}

impl Burst {
    fn ready_to_admitted(&self) -> Vec<Duration> {
        rest(&self.to_admitted, &self.to_ready)
    }
}

/// What is left of each time; nothing where there is no check.
fn rest(whole: &[Duration], first: &[Duration]) -> Vec<Duration> {
    whole.iter().zip(first).map(|(whole, first)| whole.saturating_sub(*first)).collect()
}

fn per(writes: &Writes, kind: &str, jobs: f64) -> f64 {
    ratio(writes.get(kind).copied().unwrap_or(0), jobs)
}

fn total(writes: &Writes, jobs: f64) -> f64 {
    ratio(writes.values().sum(), jobs)
}

fn ratio(count: u64, jobs: f64) -> f64 {
    if jobs > 0.0 { as_f64(usize::try_from(count).unwrap_or(usize::MAX)) / jobs } else { 0.0 }
}

#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn as_f64(count: usize) -> f64 {
    count as f64
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(0, usize::from)
}

fn median(values: &[f64]) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len().saturating_sub(1) / 2).copied().unwrap_or_default()
}

/// Median, least and most.
fn spread(values: &[f64], digits: usize) -> String {
    let (Some(least), Some(most)) =
        (values.iter().copied().min_by(f64::total_cmp), values.iter().copied().max_by(f64::total_cmp))
    else {
        return "-".to_owned();
    };
    format!("{:.digits$} [{least:.digits$}–{most:.digits$}]", median(values))
}

fn at(times: &[Duration], p: usize) -> u128 {
    percentile(times, p).as_millis()
}

fn pair(times: &[Duration]) -> String {
    if times.is_empty() { "-".to_owned() } else { format!("{}/{}", at(times, 50), at(times, 99)) }
}

/// Milliseconds, to a thousandth.
fn ms(time: Duration) -> f64 {
    (time.as_secs_f64() * 1e6).round() / 1e3
}
