//! `make bench-node`: Job created → container running on a real node, with a slice that must be made and with one that is
//! there, and beside it the same Job without Slicegate.

mod plain;
mod report;

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::Value;
use slicegate_rig::Rig;
use slicegate_rig::real_operator::RealOperator;

use crate::node::stage::{self, job, job_with, keep_idle_slices};
use crate::node::steps::{Observer, Step};
use crate::until;
use report::{Kind, Report, Row};

/// A100-80GB: one for the pod that runs beside, and room for all the others at a time.
const GPUS: u32 = 3;
/// What a pod has that runs all the time, since nodes are seldom empty.
const BESIDE: &str = "7g.80gb";
/// Taken in turn for slices that must be made.
const PROFILES: [&str; 5] = ["1g.10gb", "1g.20gb", "2g.20gb", "3g.40gb", "4g.40gb"];
/// For slices that are there.
const PROFILE: &str = PROFILES[0];
const SCRIPT: &str = "echo running";
/// Seconds for the agent to end.
const GRACE: u32 = 10;

/// How long NVML takes: in the middle of what was measured with GPU and compute instances on an A30, 130–160 ms to make and
/// 100–110 ms to destroy both (FAR, doi 10.1016/j.jpdc.2025.105128); their shares are a guess.
pub const MEASURED: [(&str, u64); 4] = [
    ("nvmlDeviceCreateGpuInstanceWithPlacement", 100),
    ("nvmlGpuInstanceCreateComputeInstance", 45),
    ("nvmlComputeInstanceDestroy", 25),
    ("nvmlGpuInstanceDestroy", 80),
];

/// How the agent runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setting {
    /// Whether NVML takes its time, or none.
    pub latencies: bool,
    /// Whether the agent shows slices on the Node itself, or waits for the kubelet to do so.
    pub early_patch: bool,
}

/// All combinations, the shipped one with NVML's latencies first.
const SETTINGS: [Setting; 4] = [
    Setting { latencies: true, early_patch: true },
    Setting { latencies: false, early_patch: true },
    Setting { latencies: true, early_patch: false },
    Setting { latencies: false, early_patch: false },
];

/// Measures, and prints a table. Returns the summary.
pub async fn run(rig: &Rig, samples: usize, json: Option<&Path>) -> Result<String> {
    let mut real = stage::set_up(rig, GPUS).await?;
    let plugin = plain::set_up(&real).await.context("plain device plugin")?;
    let beside = job("beside", "mig", BESIDE, 1, "exec sleep 100000");
    Observer::new(&real, "default", BESIDE).await?.submit(&beside, BESIDE).await?;
    let mut rows = Vec::new();
    for setting in SETTINGS {
        set(&mut real, setting).await?;
        let observer = Observer::new(&real, "default", BESIDE).await?;
        eprintln!("{}: {samples} Jobs with slices to be made", setting.name());
        rows.push(made(rig, &observer, setting, samples).await.context("slices to be made")?);
        eprintln!(
            "{}: {samples} Jobs with a slice that is there, in turn with as many without Slicegate",
            setting.name()
        );
        rows.extend(reused(rig, &observer, setting, samples).await.context("a slice that is there")?);
    }
    drop(plugin);
    let report = Report::new(rows);
    println!("\n{}", report.table());
    if let Some(file) = json {
        let text = serde_json::to_string_pretty(&report.json())?;
        fs::write(file, text).with_context(|| format!("write {}", file.display()))?;
        println!("every single time: {}\n", file.display());
    }
    Ok(report.summary())
}

async fn set(real: &mut RealOperator<'_>, setting: Setting) -> Result<()> {
    let latencies = MEASURED.iter().filter(|_| setting.latencies);
    real.set_latencies(latencies.map(|(call, ms)| ((*call).to_owned(), *ms)).collect())?;
    let early = format!("--early-patch={}", setting.early_patch);
    real.agent_args(&[&early]).await.context("set the agent's arguments")?;
    // The arguments may have been these before, and the latencies are read at the start.
    real.restart_agent(GRACE).await.context("restart the agent")
}

/// One Job after another, each with a slice that is not there.
async fn made(rig: &Rig, observer: &Observer<'_>, setting: Setting, samples: usize) -> Result<Row> {
    keep_idle_slices(rig, false).await?;
    until("no slice is there", || observer.is_without(None)).await?;
    let before = observer.nvml_calls().await?;
    let mut runs = Vec::new();
    for (number, profile) in PROFILES.iter().cycle().take(samples).enumerate() {
        // Until the kubelet has shown fewer, slices of other profiles are on their way out.
        let in_the_way = (!setting.early_patch).then_some(*profile);
        until("no slice is there", || observer.is_without(in_the_way)).await?;
        let job = job(&format!("made-{number}"), "mig", profile, 1, SCRIPT);
        runs.push(run_one(observer, &job, profile).await?);
    }
    until("no slice is there", || observer.is_without(None)).await?;
    Ok(Row { kind: Kind::Made, setting, nvml_calls: observer.nvml_calls().await? - before, runs })
}

/// One Job after another, each with the slice of the one before, and each after one without Slicegate: so both see the same
/// moods of the machine.
async fn reused(rig: &Rig, observer: &Observer<'_>, setting: Setting, samples: usize) -> Result<[Row; 2]> {
    keep_idle_slices(rig, true).await?;
    run_one(observer, &job("first", "mig", PROFILE, 1, SCRIPT), PROFILE).await?;
    let before = observer.nvml_calls().await?;
    let (mut plain, mut reused) = (Vec::new(), Vec::new());
    for number in 0..samples {
        let without = job_with(&format!("plain-{number}"), plain::QUEUE, plain::RESOURCE, 1, SCRIPT);
        until("the slice is idle", || observer.is_idle(PROFILE)).await?;
        plain.push(run_one(observer, &without, PROFILE).await?);
        until("the slice is idle", || observer.is_idle(PROFILE)).await?;
        let job = job(&format!("reused-{number}"), "mig", PROFILE, 1, SCRIPT);
        reused.push(run_one(observer, &job, PROFILE).await?);
    }
    let nvml_calls = observer.nvml_calls().await? - before;
    Ok([
        Row { kind: Kind::Reused, setting, nvml_calls, runs: reused },
        Row { kind: Kind::Plain, setting, nvml_calls: 0, runs: plain },
    ])
}

async fn run_one(
    observer: &Observer<'_>,
    job: &Value,
    profile: &str,
) -> Result<BTreeMap<Step, std::time::Duration>> {
    let job = observer.submit(job, profile).await?;
    until(&format!("{} is finished", job.name), || observer.has_reached(&job, Step::Finished)).await?;
    let steps = observer.steps(&job)?;
    observer.remove(&job).await?;
    Ok(steps)
}

impl Setting {
    /// For people.
    pub fn name(self) -> String {
        let nvml = if self.latencies { "NVML 145/105 ms" } else { "NVML instantaneous" };
        let patch = if self.early_patch { "early patch" } else { "no early patch" };
        format!("{nvml}, {patch}")
    }
}
