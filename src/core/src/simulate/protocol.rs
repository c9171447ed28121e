//! The evaluation: what is compared with what, on which demand, and the tables that come of it.
//!
//! 100 A100-80GB, requests that come at random and go away when they find no room, the first fifth not counted, the same demand for all
//! that is compared. What is said of one against another is a paired difference over seeds, with its 95 % confidence interval.

use std::fmt::Write;
use std::sync::Arc;

use super::demand::{Distribution, Drawn, Durations};
use super::inventory::{Catalogue, Inventory};
use super::outcome::{Outcome, Waits};
use super::placing::Limits;
use super::policy::Name;
use super::run::{Course, Mode, run};
use super::statistics::{Estimate, mean};
use crate::geometry::Model;

/// What is compared.
#[derive(Clone, Copy, Debug)]
pub struct Variant {
    /// What it is called in the tables.
    pub label: &'static str,
    name: Name,
    limits: Limits,
}

const STILL: Limits = Limits { moves: 0, movable: 0.0, known_durations: false };
const KNOWING: Limits = Limits { known_durations: true, ..STILL };

const fn plain(label: &'static str, name: Name) -> Variant {
    Variant { label, name, limits: STILL }
}

const fn moving(label: &'static str, name: Name, movable: f64) -> Variant {
    Variant { label, name, limits: Limits { moves: 2, movable, known_durations: false } }
}

const SLICEGATE: usize = 6;
const KNOWN: usize = 7;
const MOVING: usize = 10;
const FGD_MOVING: usize = 11;
const ORACLE: usize = 12;
const MFI: usize = 4;

/// In the order of the tables.
pub const VARIANTS: [Variant; 13] = [
    plain("random", Name::Random),
    plain("first-fit (DRA)", Name::FirstFit),
    plain("hami", Name::Hami),
    plain("best-fit", Name::BestFit),
    plain("mfi", Name::Mfi),
    plain("fgd", Name::Fgd),
    plain("slicegate", Name::Slicegate),
    Variant { label: "slicegate, durations known", name: Name::Slicegate, limits: KNOWING },
    moving("slicegate, 2 moves, 25 % movable", Name::Slicegate, 0.25),
    moving("slicegate, 2 moves, 50 % movable", Name::Slicegate, 0.5),
    moving("slicegate, 2 moves, 100 % movable", Name::Slicegate, 1.0),
    moving("fgd, 2 moves, 100 % movable", Name::Fgd, 1.0),
    plain("oracle", Name::Oracle),
];

/// The loads of the tables.
pub const LOADS: [f64; 2] = [0.9, 1.0];

/// What one run came to.
#[derive(Clone, Copy, Debug)]
pub struct Figures {
    /// Share of slices accepted, by units.
    slices: f64,
    /// Share of requests accepted.
    requests: f64,
    /// Share of requests for a whole GPU accepted.
    whole: f64,
    /// Share of rejections that moving everything would have avoided.
    fragmented: f64,
    /// Moves for each hundred accepted.
    moves: f64,
}

/// The GPUs of an evaluation.
#[derive(Debug)]
pub struct Bench {
    inventory: Inventory,
    catalogue: Catalogue,
}

impl Bench {
    /// So many GPUs of a model.
    pub fn new(model: &Arc<Model>, gpus: u32) -> Self {
        let mut inventory = Inventory::default();
        inventory.add(model, gpus);
        let catalogue = Catalogue::new(&inventory);
        Self { inventory, catalogue }
    }

    fn go(&self, drawn: &Drawn, variants: &[Variant], mode: Mode, seed: u64) -> Vec<Outcome> {
        let requests = drawn.requests(&self.catalogue, seed);
        let shares = drawn.distribution.shares(&self.catalogue);
        let course = Course { mode, warm_up: requests.len() / 5 };
        let one = |variant: &Variant| {
            let mut policy =
                variant.name.policy(&self.catalogue, &self.inventory, &shares, variant.limits, seed);
            run(&mut *policy, &self.catalogue, &requests, course, &mut |_, _| {})
        };
        variants.iter().map(one).collect()
    }

    /// All [`VARIANTS`] on the demand of one seed.
    pub fn losses(&self, distribution: Distribution, load: f64, arrivals: u32, seed: u64) -> Vec<Figures> {
        let drawn = Drawn { distribution, load, arrivals, durations: Durations::Exponential };
        let units = self.catalogue.models().next().map_or(0, |model| u32::from(model.units));
        let whole = self.catalogue.offers().iter().position(|offer| offer.units == units);
        let figures = |outcome: Outcome| Figures {
            slices: outcome.units.ratio(),
            requests: outcome.requests.ratio(),
            whole: whole.map_or(1.0, |whole| outcome.profiles[whole].ratio()),
            fragmented: outcome.fragmented.ratio(),
            moves: outcome.moves_per_hundred(),
        };
        self.go(&drawn, &VARIANTS, Mode::Loss, seed).into_iter().map(figures).collect()
    }

    /// All [`QUEUED`] on the demand of one seed: 500 requests of MIGBench's mix at load 1.4, lognormal durations.
    pub fn waits(&self, seed: u64) -> Vec<QueueFigures> {
        let drawn = Drawn {
            distribution: Distribution::MigBench,
            load: 1.4,
            arrivals: 500,
            durations: Durations::Lognormal,
        };
        let whole = self.catalogue.offers().iter().position(|offer| offer.units == 8);
        let figures = |outcome: Outcome| QueueFigures {
            all: outcome.waits(None),
            whole: outcome.waits(whole),
            makespan: outcome.makespan,
            used: outcome.utilisation(),
        };
        self.go(&drawn, &QUEUED, Mode::Queue, seed).into_iter().map(figures).collect()
    }
}

/// The figures of one load: by distribution, seed and variant.
pub type Losses = Vec<Vec<Vec<Figures>>>;

fn column(seeds: &[Vec<Figures>], variant: usize, figure: impl Fn(&Figures) -> f64) -> Vec<f64> {
    seeds.iter().map(|variants| figure(&variants[variant])).collect()
}

fn row(text: &mut String, label: &str, cells: impl Iterator<Item = String>) {
    line(text, label, 24, cells);
}

/// A line of a table, whose cells are so many characters wide.
fn line(text: &mut String, label: &str, width: usize, cells: impl Iterator<Item = String>) {
    let _ = write!(text, "{label:<34}");
    for cell in cells {
        let _ = write!(text, "{cell:>width$}");
    }
    text.push('\n');
}

/// The tables of one load.
pub fn loss_tables(load: f64, losses: &Losses) -> String {
    let mut text = String::new();
    let names = || Distribution::EVALUATED.iter().map(|distribution| distribution.name().to_owned());
    let _ = writeln!(text, "Load {load:.1}: slices accepted, ± 95 % confidence (requests accepted)");
    row(&mut text, "", names());
    for (variant, of) in VARIANTS.iter().enumerate() {
        row(
            &mut text,
            of.label,
            losses.iter().map(|seeds| {
                let slices = Estimate::of(&column(seeds, variant, |f| f.slices));
                let requests = mean(&column(seeds, variant, |f| f.requests));
                format!("{:.4} ±{:.4} ({requests:.4})", slices.mean, slices.half_width)
            }),
        );
    }
    let _ =
        writeln!(text, "\nLoad {load:.1}: slices accepted against others, seed by seed, ± 95 % confidence");
    row(&mut text, "", names());
    let pairs = [1, 2, 3, 4, 5].map(|other| (SLICEGATE, other)).into_iter();
    for (one, other) in pairs.chain([(KNOWN, SLICEGATE), (MOVING, FGD_MOVING), (MOVING, ORACLE)]) {
        let label = format!("{} − {}", short(one), short(other));
        row(
            &mut text,
            &label,
            losses.iter().map(|seeds| {
                let of = |variant| column(seeds, variant, |f| f.slices);
                let difference = Estimate::paired(&of(one), &of(other));
                format!("{:+.4} ±{:.4}", difference.mean, difference.half_width)
            }),
        );
    }
    let _ = writeln!(
        text,
        "\nLoad {load:.1}: share of the gap from mfi to oracle that is closed · moves per 100 accepted · 7g accepted"
    );
    row(&mut text, "", names());
    for (variant, of) in VARIANTS.iter().enumerate().skip(MFI) {
        row(
            &mut text,
            of.label,
            losses.iter().map(|seeds| {
                let of = |variant| mean(&column(seeds, variant, |f| f.slices));
                let closed = 100.0 * (of(variant) - of(MFI)) / (of(ORACLE) - of(MFI));
                let moves = mean(&column(seeds, variant, |f| f.moves));
                let whole = mean(&column(seeds, variant, |f| f.whole));
                format!("{closed:.0} % · {moves:.2} · {whole:.4}")
            }),
        );
    }
    let fragmented = losses
        .iter()
        .map(|seeds| format!("{:.1} %", 100.0 * mean(&column(seeds, SLICEGATE, |f| f.fragmented))));
    let _ = writeln!(
        text,
        "\nLoad {load:.1}: rejections of slicegate, without moves, that moving everything would avoid"
    );
    row(&mut text, "", names());
    row(&mut text, "fragmentation", fragmented);
    text.push('\n');
    text
}

/// A name for a difference.
fn short(variant: usize) -> &'static str {
    match variant {
        1 => "first-fit",
        KNOWN => "known",
        MOVING => "2 moves",
        FGD_MOVING => "fgd, 2 moves",
        other => VARIANTS[other].label,
    }
}

/// What is compared on a queue.
pub const QUEUED: [Variant; 6] = [
    plain("first-fit (DRA)", Name::FirstFit),
    plain("hami", Name::Hami),
    plain("best-fit", Name::BestFit),
    plain("slicegate", Name::Slicegate),
    Variant { label: "slicegate, durations known", name: Name::Slicegate, limits: KNOWING },
    moving("slicegate, 2 moves, 100 % movable", Name::Slicegate, 1.0),
];

/// What one queue came to.
#[derive(Clone, Copy, Debug)]
pub struct QueueFigures {
    all: Waits,
    whole: Waits,
    makespan: f64,
    used: f64,
}

/// A figure of a queue, and what it is called.
type Column = (&'static str, fn(&QueueFigures) -> f64);

const COLUMNS: [Column; 7] = [
    ("MEAN", |f| f.all.mean),
    ("P95", |f| f.all.p95),
    ("P99", |f| f.all.p99),
    ("7G MEAN", |f| f.whole.mean),
    ("7G P99", |f| f.whole.p99),
    ("MAKESPAN", |f| f.makespan),
    ("USED %", |f| 100.0 * f.used),
];

/// The tables of a queue, by seed and variant.
pub fn queue_tables(seeds: &[Vec<QueueFigures>]) -> String {
    let mut text = String::from(
        "Queue, 8 H100, load 1.4, 500 requests (1g 35, 2g 25, 3g 25, 7g 5), lognormal durations: waits in seconds\n",
    );
    let names = || COLUMNS.iter().map(|(name, _)| (*name).to_owned());
    let values = |variant: usize, figure: fn(&QueueFigures) -> f64| -> Vec<f64> {
        seeds.iter().map(|variants| figure(&variants[variant])).collect()
    };
    line(&mut text, "", 14, names());
    for (variant, of) in QUEUED.iter().enumerate() {
        line(
            &mut text,
            of.label,
            14,
            COLUMNS.iter().map(|(_, figure)| format!("{:.0}", mean(&values(variant, *figure)))),
        );
    }
    text.push_str("\nAgainst others, seed by seed, ± 95 % confidence\n");
    line(&mut text, "", 14, names());
    for (variant, of) in QUEUED.iter().enumerate().skip(3) {
        for other in [0, 1] {
            let label = format!("{} − {}", of.label.replace("slicegate, ", ""), short(other + 1));
            let cell = |(_, figure): &Column| {
                let difference = Estimate::paired(&values(variant, *figure), &values(other, *figure));
                format!("{:+.0} ±{:.0}", difference.mean, difference.half_width)
            };
            line(&mut text, &label, 14, COLUMNS.iter().map(cell));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::geometry::tests::a100;

    #[test]
    fn labels_are_where_their_figures_are() {
        assert_eq!(VARIANTS.map(|v| v.label)[MFI..=SLICEGATE], ["mfi", "fgd", "slicegate"]);
        assert_eq!(VARIANTS[KNOWN].limits, KNOWING);
        assert_eq!((VARIANTS[MOVING].name, VARIANTS[FGD_MOVING].name), (Name::Slicegate, Name::Fgd));
        assert_eq!(VARIANTS[ORACLE].name, Name::Oracle);
    }

    /// A reduced run of what `make eval-placement` does, with what must hold in it.
    #[test]
    fn the_tables_come_out_and_what_is_moved_or_known_helps() {
        let bench = Bench::new(&Arc::new(a100()), 24);
        let losses: Losses = Distribution::EVALUATED
            .iter()
            .map(|distribution| (1..=3).map(|seed| bench.losses(*distribution, 0.9, 3000, seed)).collect())
            .collect();
        for seeds in &losses {
            let of = |variant| mean(&column(seeds, variant, |f| f.slices));
            assert!(of(0) < of(1) && of(1) < of(SLICEGATE), "random, first-fit, slicegate");
            assert!(of(SLICEGATE) > of(MFI) - 0.002, "not below mfi");
            assert!(of(SLICEGATE) < of(MOVING) && of(MOVING) < of(ORACLE) + 0.003, "moves help");
            assert!(of(KNOWN) > of(SLICEGATE) - 0.002, "to know ends does not harm");
        }
        let text = loss_tables(0.9, &losses);
        assert_eq!(
            text.lines().filter(|line| line.starts_with("slicegate, 2 moves, 50 % movable")).count(),
            2
        );
        assert!(!text.contains("NaN") && !text.contains("inf"), "{text}");

        let bench = Bench::new(&Arc::new(a100()), 8);
        let seeds: Vec<Vec<QueueFigures>> = (1..=3).map(|seed| bench.waits(seed)).collect();
        let wait = |variant: usize| mean(&seeds.iter().map(|s| s[variant].whole.mean).collect::<Vec<_>>());
        assert!(wait(5) < wait(0), "with moves, requests for whole GPUs wait less than with first-fit");
        assert!(!queue_tables(&seeds).contains("NaN"));
    }
}
