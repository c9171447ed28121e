//! `slicegate simulate`: the placement engine alone, on recorded or drawn demand, with no cluster to change.
//!
//! Exit code 2 is for input that cannot be used: what is wrong is said with its file and line.

mod cluster;
mod decisions;
mod fit;
mod inventory;
mod models;
mod progress;
mod report;
mod trace;
mod work;

use std::fs;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use slicegate_core::simulate::demand::{Distribution, Drawn, Durations};
use slicegate_core::simulate::inventory::Catalogue;
use slicegate_core::simulate::placing::Limits;
use slicegate_core::simulate::plot;
use slicegate_core::simulate::policy::Name;
use slicegate_core::simulate::run::{Course, Mode};

/// What to simulate.
#[derive(Clone, Debug, clap::Args)]
pub struct Args {
    /// So many GPUs of the --model at the same position, on nodes of eight. Can be repeated. With --inventory or --from-cluster they
    /// are added to what is there. [default: 100 of A100-80GB]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    gpus: Vec<u32>,
    /// The GPU model of the --gpus at the same position. [default: A100-80GB]
    #[arg(long, value_name = "NAME")]
    model: Vec<String>,
    /// Take the GPUs from a file: either a list of {model, gpus, nodes}, or what `kubectl get mignodes -o yaml` prints.
    #[arg(long, value_name = "FILE", conflicts_with = "from_cluster")]
    inventory: Option<PathBuf>,
    /// Take the GPUs, and what is on them, from the MIGNodes of the cluster that kubectl uses. Nothing there is changed.
    #[arg(long)]
    from_cluster: bool,
    /// The kubeconfig context to use.
    #[arg(long, requires = "from_cluster")]
    context: Option<String>,
    /// Say how many of so many more slices would fit, instead of letting requests come and go: 3g.40gb=20. Can be repeated.
    #[arg(long, value_name = "PROFILE=N", conflicts_with_all = ["trace", "policy", "plot"])]
    fit: Vec<String>,
    /// Take the requests from a file, one a line: {"id":"a","arrival":0,"duration":60,"slices":[{"profile":"1g.10gb","count":1}],
    /// "pods":1}. Times are in seconds; without a duration a request stays for ever. All its pods are placed, or none.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["distribution", "load", "arrivals", "seeds"])]
    trace: Option<PathBuf>,
    /// Which profiles are asked for, when requests are drawn.
    #[arg(long, value_enum, default_value = "uniform")]
    distribution: Mix,
    /// Units asked for, as a share of all, when requests are drawn.
    #[arg(long, value_name = "SHARE", default_value = "0.9", value_parser = load, allow_negative_numbers = true)]
    load: f64,
    /// How many requests are drawn. In loss mode the first fifth fills the GPUs and is not counted.
    #[arg(long, value_name = "N", default_value = "20000", value_parser = clap::value_parser!(u32).range(1..=10_000_000))]
    arrivals: u32,
    /// The first seed: the same seed draws the same requests.
    #[arg(long, value_name = "S", default_value = "1")]
    seed: u64,
    /// How many seeds, each with requests of its own: with two or more, intervals are printed.
    #[arg(long, value_name = "N", default_value = "1", value_parser = clap::value_parser!(u32).range(1..=100_000))]
    seeds: u32,
    /// What becomes of a request that finds no room: it goes away, or it waits.
    #[arg(long, value_enum, default_value = "loss")]
    mode: Modes,
    /// What places: slicegate, first-fit, best-fit, mfi, hami, fgd, random or oracle. Can be repeated, to compare.
    #[arg(long, value_name = "NAME", default_value = "slicegate")]
    policy: Vec<Name>,
    /// How many slices slicegate may move for a request that finds no room.
    #[arg(long, value_name = "K", default_value = "0")]
    moves: usize,
    /// The share of running requests that may be moved, from 0 to 1. What is idle is in nobody's way.
    #[arg(long, value_name = "SHARE", default_value = "0", value_parser = share, allow_negative_numbers = true)]
    movable: f64,
    /// Tell slicegate when each request will end, as Kueue's maximumExecutionTimeSeconds does.
    #[arg(long)]
    known_durations: bool,
    /// Print JSON.
    #[arg(long)]
    json: bool,
    /// Write every placement and move, one a line, so that anyone can check them.
    #[arg(long, value_name = "FILE")]
    decisions: Option<PathBuf>,
    /// Draw the policies, and the occupancy over time of the first seed, as SVG.
    #[arg(long, value_name = "FILE")]
    plot: Option<PathBuf>,
}

/// [`Distribution`], as it is asked for.
#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mix {
    Uniform,
    SkewSmall,
    SkewBig,
    Bimodal,
    /// 1g 35, 2g 25, 3g 25, 7g 5.
    #[value(name = "migbench")]
    MigBench,
}

/// [`Mode`], as it is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Modes {
    /// It goes away.
    Loss,
    /// It waits.
    Queue,
}

/// What can go wrong.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A line of a file cannot be used.
    #[error("{}:{line}: {reason}", .file.display())]
    Line {
        /// The file.
        file: PathBuf,
        /// The line, from 1.
        line: u64,
        /// What is wrong with it.
        reason: String,
    },
    /// An argument, or a file as a whole, cannot be used.
    #[error("{0}")]
    Input(String),
    /// A result cannot be written.
    #[error("cannot write {}: {reason}", .file.display())]
    Write {
        /// The file.
        file: PathBuf,
        /// Why.
        reason: std::io::Error,
    },
    /// The cluster cannot be read.
    #[error(transparent)]
    Cluster(#[from] super::Error),
}

impl Error {
    /// What a shell is told: 2 for input that cannot be used, 1 for the rest.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Line { .. } | Self::Input(_) => 2,
            Self::Write { .. } | Self::Cluster(_) => 1,
        }
    }
}

fn share(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number from 0 to 1".to_owned())?;
    if (0.0..=1.0).contains(&number) { Ok(number) } else { Err("expected a number from 0 to 1".to_owned()) }
}

fn load(text: &str) -> Result<f64, String> {
    let number: f64 = text.parse().map_err(|_| "expected a number above 0".to_owned())?;
    if number > 0.0 && number <= 1e3 {
        Ok(number)
    } else {
        Err("expected a number above 0, 1000 at most".to_owned())
    }
}

/// Simulates, writes the files that are asked for, and returns what is printed.
pub async fn run(args: Args) -> Result<String, Error> {
    let inventory = inventory::read(&args).await?;
    let catalogue = Catalogue::new(&inventory);
    let limits = Limits { moves: args.moves, movable: args.movable, known_durations: args.known_durations };
    if !args.fit.is_empty() {
        return fit::run(&args, &catalogue, &inventory, limits);
    }
    let demand = match &args.trace {
        Some(file) => work::Demand::Recorded(trace::read(file, &catalogue, args.seed)?),
        None => work::Demand::Drawn(drawn(&args)),
    };
    let course = Course { mode: args.mode.into(), warm_up: warm_up(&args) };
    let mut policies = args.policy.clone();
    let mut seen = std::collections::BTreeSet::new();
    policies.retain(|name| seen.insert(*name));
    let work = work::Work {
        catalogue: &catalogue,
        inventory: &inventory,
        demand: &demand,
        policies: &policies,
        limits,
        course,
        seeds: (args.seed..).take(args.seeds as usize).collect(),
        with_decisions: args.decisions.is_some(),
    };
    let results = work.run();
    if let Some(file) = &args.decisions {
        let text: String = results.iter().flatten().map(|result| result.decisions.as_str()).collect();
        write(file, &text)?;
    }
    let report = report::Report::new(&args, &catalogue, &policies, limits, &results);
    if let Some(file) = &args.plot {
        write(file, &plot::comparison(&report.bars(), &report.lines()))?;
    }
    Ok(if args.json { report.json() } else { report.table() })
}

fn write(file: &Path, text: &str) -> Result<(), Error> {
    fs::write(file, text).map_err(|reason| Error::Write { file: file.to_owned(), reason })
}

fn read(file: &Path) -> Result<String, Error> {
    fs::read_to_string(file)
        .map_err(|reason| Error::Input(format!("cannot read {}: {reason}", file.display())))
}

fn drawn(args: &Args) -> Drawn {
    let distribution = match args.distribution {
        Mix::Uniform => Distribution::Uniform,
        Mix::SkewSmall => Distribution::SkewSmall,
        Mix::SkewBig => Distribution::SkewBig,
        Mix::Bimodal => Distribution::Bimodal,
        Mix::MigBench => Distribution::MigBench,
    };
    let durations = match args.mode {
        Modes::Loss => Durations::Exponential,
        Modes::Queue => Durations::Lognormal,
    };
    Drawn { distribution, load: args.load, arrivals: args.arrivals, durations }
}

/// A recorded trace counts from its beginning.
fn warm_up(args: &Args) -> usize {
    if args.trace.is_some() { 0 } else { args.arrivals as usize / 5 }
}

impl From<Modes> for Mode {
    fn from(mode: Modes) -> Self {
        match mode {
            Modes::Loss => Self::Loss,
            Modes::Queue => Self::Queue,
        }
    }
}
