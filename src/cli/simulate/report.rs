//! What came of it, as a table, as JSON, and as a picture.

use std::fmt::Write;

use comfy_table::{CellAlignment, Table, presets};
use serde::Serialize;
use slicegate_core::simulate::inventory::Catalogue;
use slicegate_core::simulate::outcome::{Outcome, Waits};
use slicegate_core::simulate::placing::Limits;
use slicegate_core::simulate::plot::{Bar, Line};
use slicegate_core::simulate::policy::Name;
use slicegate_core::simulate::statistics::Estimate;

use super::work::Done;
use super::{Args, Modes, models};

/// The whole report; its fields are the JSON.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    inventory: Vec<Gpus>,
    demand: String,
    mode: &'static str,
    seeds: u32,
    policies: Vec<Row>,
    /// Of each policy against the first, seed by seed.
    differences: Vec<Difference>,
    #[serde(skip)]
    occupancy: Vec<(String, Vec<(f64, f64)>)>,
}

/// GPUs of one model.
#[derive(Serialize)]
pub struct Gpus {
    model: String,
    gpus: u32,
}

/// A mean over seeds. There is no interval of one seed.
#[derive(Clone, Copy, Serialize)]
#[serde(rename_all = "camelCase")]
struct Mean {
    mean: f64,
    /// Half the width of the 95 % confidence interval.
    half_width: Option<f64>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Row {
    policy: &'static str,
    moves: usize,
    movable: f64,
    known_durations: bool,
    request_acceptance: Mean,
    slice_acceptance: Mean,
    profiles: Vec<ProfileRow>,
    utilisation: Mean,
    /// Share of the requests that found no room though they would have, had everything been moved.
    fragmentation_share: Mean,
    moves_per_hundred: Mean,
    #[serde(skip_serializing_if = "Option::is_none")]
    queue: Option<QueueRow>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct ProfileRow {
    profile: String,
    acceptance: Mean,
    #[serde(skip_serializing_if = "Option::is_none")]
    wait: Option<WaitRow>,
}

/// Times in seconds.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct QueueRow {
    wait: WaitRow,
    makespan: Mean,
    /// Requests that still waited at the end.
    unplaced: Mean,
}

#[derive(Clone, Copy, Serialize)]
struct WaitRow {
    mean: Mean,
    p50: Mean,
    p95: Mean,
    p99: Mean,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Difference {
    policy: &'static str,
    to: &'static str,
    slice_acceptance: Mean,
    request_acceptance: Mean,
    #[serde(skip_serializing_if = "Option::is_none")]
    mean_wait: Option<Mean>,
}

impl From<Estimate> for Mean {
    fn from(estimate: Estimate) -> Self {
        let half_width = Some(estimate.half_width).filter(|half| half.is_finite());
        Self { mean: estimate.mean, half_width }
    }
}

fn each(done: &[Done], value: impl Fn(&Outcome) -> f64) -> Vec<f64> {
    done.iter().map(|done| value(&done.outcome)).collect()
}

fn mean(done: &[Done], value: impl Fn(&Outcome) -> f64) -> Mean {
    Estimate::of(&each(done, value)).into()
}

fn waits(done: &[Done], profile: Option<usize>) -> WaitRow {
    let of = |field: fn(Waits) -> f64| mean(done, |outcome| field(outcome.waits(profile)));
    WaitRow { mean: of(|w| w.mean), p50: of(|w| w.p50), p95: of(|w| w.p95), p99: of(|w| w.p99) }
}

/// The GPUs of a catalogue, by model.
pub fn gpus(catalogue: &Catalogue) -> Vec<Gpus> {
    let of = |(model, gpus): (&std::sync::Arc<slicegate_core::geometry::Model>, u32)| Gpus {
        model: models::short(model).to_owned(),
        gpus,
    };
    catalogue.models().zip(catalogue.gpus()).map(of).collect()
}

/// As in `8 × A100-80GB, 2 × A30-24GB`.
pub fn inventory_line(gpus: &[Gpus]) -> String {
    gpus.iter().map(|gpus| format!("{} × {}", gpus.gpus, gpus.model)).collect::<Vec<_>>().join(", ")
}

/// JSON for people and programs.
pub fn to_json(value: &impl Serialize) -> String {
    // Numbers and text always are JSON.
    serde_json::to_string_pretty(value).unwrap_or_default() + "\n"
}

/// Points of a line in the picture.
const SPANS: u32 = 200;

impl Report {
    /// The report of what was done, by policy and seed.
    pub fn new(
        args: &Args,
        catalogue: &Catalogue,
        policies: &[Name],
        limits: Limits,
        results: &[Vec<Done>],
    ) -> Self {
        let is_queue = args.mode == Modes::Queue;
        let row = |(name, done): (&Name, &Vec<Done>)| {
            let limits = if *name == Name::Slicegate { limits } else { Limits::default() };
            let asked = |index: &usize| done.iter().any(|done| done.outcome.profiles[*index].all > 0);
            let profile = |index: usize| ProfileRow {
                profile: catalogue.offers()[index].name.to_string(),
                acceptance: mean(done, |outcome| outcome.profiles[index].ratio()),
                wait: is_queue.then(|| waits(done, Some(index))),
            };
            Row {
                policy: name.as_str(),
                moves: limits.moves,
                movable: limits.movable,
                known_durations: limits.known_durations,
                request_acceptance: mean(done, |outcome| outcome.requests.ratio()),
                slice_acceptance: mean(done, |outcome| outcome.units.ratio()),
                profiles: (0..catalogue.offers().len()).filter(asked).map(profile).collect(),
                utilisation: mean(done, Outcome::utilisation),
                fragmentation_share: mean(done, |outcome| {
                    if outcome.fragmented.all == 0 { 0.0 } else { outcome.fragmented.ratio() }
                }),
                moves_per_hundred: mean(done, Outcome::moves_per_hundred),
                queue: is_queue.then(|| QueueRow {
                    wait: waits(done, None),
                    makespan: mean(done, |outcome| outcome.makespan),
                    unplaced: mean(done, |outcome| {
                        f64::from(u32::try_from(outcome.unplaced).unwrap_or(u32::MAX))
                    }),
                }),
            }
        };
        let demand = if let Some(file) = &args.trace {
            format!("{}, from its beginning", file.display())
        } else {
            let name = super::drawn(args).distribution.name();
            let counted = match args.mode {
                Modes::Queue => "all counted".to_owned(),
                Modes::Loss => format!("the first {} not counted", super::warm_up(args)),
            };
            format!("{name}, load {}, {} requests, {counted}", args.load, args.arrivals)
        };
        Self {
            inventory: gpus(catalogue),
            demand,
            mode: if is_queue { "queue" } else { "loss" },
            seeds: args.seeds,
            policies: policies.iter().zip(results).map(row).collect(),
            differences: differences(policies, results, is_queue),
            occupancy: policies
                .iter()
                .zip(results)
                .filter_map(|(name, done)| Some((name.to_string(), done.first()?.outcome.occupancy(SPANS))))
                .collect(),
        }
    }

    /// The report as JSON.
    pub fn json(&self) -> String {
        to_json(self)
    }

    /// The report for people.
    pub fn table(&self) -> String {
        let seeds = if self.seeds == 1 {
            "1 seed".to_owned()
        } else {
            format!("{} seeds, ± 95 % confidence", self.seeds)
        };
        let mut text = format!("{} · {} · {seeds}\n\n", inventory_line(&self.inventory), self.demand);
        if self.mode == "queue" {
            let header = ["POLICY", "MEAN WAIT", "P50", "P95", "P99", "MAKESPAN", "USED", "MOVES/100"];
            text.push_str(&table(&header, self.policies.iter().map(Row::queue_cells)));
            text.push_str("\nMean wait and p99 by profile, in seconds\n");
            let wait = |row: &ProfileRow| {
                row.wait.map_or_else(String::new, |w| format!("{:.0}/{:.0}", w.mean.mean, w.p99.mean))
            };
            text.push_str(&self.by_profile(wait));
        } else {
            let header =
                ["POLICY", "SLICES ACCEPTED", "REQUESTS ACCEPTED", "USED", "FRAGMENTATION", "MOVES/100"];
            text.push_str(&table(&header, self.policies.iter().map(Row::loss_cells)));
            text.push_str("\nAccepted by profile\n");
            text.push_str(&self.by_profile(|row| row.acceptance.share()));
        }
        if self.seeds > 1 && !self.differences.is_empty() {
            let _ = writeln!(text, "\nAgainst {}, seed by seed", self.differences[0].to);
            let is_queue = self.mode == "queue";
            let header: &[&str] = if is_queue {
                &["POLICY", "MEAN WAIT"]
            } else {
                &["POLICY", "SLICES ACCEPTED", "REQUESTS ACCEPTED"]
            };
            let cells = |d: &Difference| {
                let mut cells = vec![d.policy.to_owned()];
                match d.mean_wait {
                    Some(wait) => cells.push(wait.seconds()),
                    None => cells.extend([d.slice_acceptance, d.request_acceptance].map(Mean::signed)),
                }
                cells
            };
            text.push_str(&table(header, self.differences.iter().map(cells)));
        }
        text
    }

    fn by_profile(&self, cell: impl Fn(&ProfileRow) -> String) -> String {
        let profiles = self.policies.first().map(|row| &row.profiles);
        let mut header = vec!["POLICY"];
        header.extend(profiles.into_iter().flatten().map(|profile| profile.profile.as_str()));
        let cells =
            |row: &Row| [row.policy.to_owned()].into_iter().chain(row.profiles.iter().map(&cell)).collect();
        table(&header, self.policies.iter().map(cells))
    }

    /// Slices accepted, or the mean wait, of each policy.
    pub fn bars(&self) -> Vec<Bar> {
        let bar = |row: &Row| {
            let value = row.queue.as_ref().map_or(row.slice_acceptance, |queue| queue.wait.mean);
            Bar {
                label: row.policy.to_owned(),
                value: value.mean,
                half_width: value.half_width.unwrap_or(0.0),
            }
        };
        self.policies.iter().map(bar).collect()
    }

    /// Occupancy over time of the first seed, of each policy.
    pub fn lines(&self) -> Vec<Line> {
        self.occupancy
            .iter()
            .map(|(label, points)| Line { label: label.clone(), points: points.clone() })
            .collect()
    }
}

fn differences(policies: &[Name], results: &[Vec<Done>], is_queue: bool) -> Vec<Difference> {
    let (Some((to, others)), Some((base, results))) = (policies.split_first(), results.split_first()) else {
        return Vec::new();
    };
    let difference = |(name, done): (&Name, &Vec<Done>)| {
        let paired =
            |value: fn(&Outcome) -> f64| Mean::from(Estimate::paired(&each(done, value), &each(base, value)));
        Difference {
            policy: name.as_str(),
            to: to.as_str(),
            slice_acceptance: paired(|outcome| outcome.units.ratio()),
            request_acceptance: paired(|outcome| outcome.requests.ratio()),
            mean_wait: is_queue.then(|| paired(|outcome| outcome.waits(None).mean)),
        }
    };
    others.iter().zip(results).map(difference).collect()
}

impl Mean {
    fn share(self) -> String {
        let half = self.half_width.map_or_else(String::new, |half| format!(" ±{half:.4}"));
        format!("{:.4}{half}", self.mean)
    }

    fn signed(self) -> String {
        let half = self.half_width.map_or_else(String::new, |half| format!(" ±{half:.4}"));
        format!("{:+.4}{half}", self.mean)
    }

    fn seconds(self) -> String {
        let half = self.half_width.map_or_else(String::new, |half| format!(" ±{half:.0}"));
        format!("{:.0} s{half}", self.mean)
    }

    fn percent(self) -> String {
        format!("{:.1} %", 100.0 * self.mean)
    }
}

impl Row {
    fn loss_cells(&self) -> Vec<String> {
        vec![
            self.policy.to_owned(),
            self.slice_acceptance.share(),
            self.request_acceptance.share(),
            self.utilisation.percent(),
            self.fragmentation_share.percent(),
            format!("{:.2}", self.moves_per_hundred.mean),
        ]
    }

    fn queue_cells(&self) -> Vec<String> {
        let mut cells = vec![self.policy.to_owned()];
        if let Some(QueueRow { wait, makespan, .. }) = &self.queue {
            cells.extend([wait.mean, wait.p50, wait.p95, wait.p99, *makespan].map(Mean::seconds));
        }
        cells.extend([self.utilisation.percent(), format!("{:.2}", self.moves_per_hundred.mean)]);
        cells
    }
}

fn table(header: &[&str], rows: impl Iterator<Item = Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(header.iter().copied());
    rows.for_each(|row| {
        table.add_row(row);
    });
    for (index, column) in table.column_iter_mut().enumerate() {
        column.set_padding((0, 3));
        if index > 0 {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    let mut text = String::new();
    for line in table.lines() {
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}
