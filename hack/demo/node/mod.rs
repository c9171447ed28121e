//! `make demo-node`: real containers on slices that the agent has made, on a real kubelet.

mod logs;
pub mod stage;
pub mod steps;

use std::collections::BTreeSet;
use std::fs;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use slicegate_rig::Rig;
use slicegate_rig::operator::Operator;
use slicegate_rig::real_operator::RealOperator;
use stage::{job, keep_idle_slices};
use steps::{Observer, Step, Submitted};

use crate::until;

const GPUS: u32 = 2;
const PROFILE: &str = "1g.10gb";
/// No profile: no pod runs that is not part of the show.
const NOTHING: &str = "";
/// Says which slice the container has, and has it for a while.
const SCRIPT: &str = "echo \"I have $(env | sed -n 's/^SLICEGATE_MIG_.*=//p') through $(ls -d /dev/nvidia[0-9]* \
                      /dev/nvidia-caps/* | tr '\\n' ' ')\"; sleep 2";
/// Often enough for the eye.
const FRAME: Duration = Duration::from_millis(50);
/// Long enough for what happened to be known here, so that steps are shown in their order.
const SETTLED: Duration = Duration::from_millis(150);

/// Shows it all. Returns the summary.
pub async fn run(rig: &Rig) -> Result<String> {
    let real = stage::set_up(rig, GPUS).await?;
    keep_idle_slices(rig, true).await?;
    let observer = Observer::new(&real, "default", NOTHING).await?;
    slices(rig, "nodes").await?;

    println!("\nA Job with one slice; there is none yet:");
    let made = show(rig, &observer, &job("first", "mig", PROFILE, 1, SCRIPT)).await?;
    println!("\nAnother one, after it: it gets the slice that is there.");
    let before = observer.nvml_calls().await?;
    let reused = show(rig, &observer, &job("second", "mig", PROFILE, 1, SCRIPT)).await?;
    let calls = observer.nvml_calls().await? - before;
    println!("   NVML calls that make or destroy: {calls}");
    ensure!(calls == 0, "a slice was made or destroyed though there was an idle one");
    println!("\nA Job of three pods: one slice is there, two are made.");
    show(rig, &observer, &job("third", "mig", PROFILE, 3, SCRIPT)).await?;

    println!("\nIdle slices are no longer kept:");
    keep_idle_slices(rig, false).await?;
    until("no slice is left", || observer.is_without(None)).await?;
    let (instances, specifications) = left(&real)?;
    println!(
        "   left: 0 claims, 0 slices in MIGNode and Node, {instances} GPU instances, {specifications} CDI specifications"
    );
    ensure!(instances + specifications == 0, "something was left behind");
    Ok(format!(
        "Job created → container running: {} ms with a slice to be made, {} ms with one that was there; nothing left",
        made.as_millis(),
        reused.as_millis()
    ))
}

/// Submits a Job and shows how it goes. Returns the time until its first container ran.
async fn show(rig: &Rig, observer: &Observer<'_>, manifest: &serde_json::Value) -> Result<Duration> {
    let pods = manifest["spec"]["completions"].as_u64().and_then(|n| usize::try_from(n).ok()).unwrap_or(1);
    let job = observer.submit(manifest, PROFILE).await?;
    let begun = std::time::Instant::now();
    let (mut said, mut drawn) = (BTreeSet::new(), false);
    loop {
        let steps = observer.steps(&job)?;
        let mut new: Vec<(Duration, Step)> = steps
            .iter()
            .filter(|(step, at)| !said.contains(*step) && begun.elapsed() > **at + SETTLED)
            .map(|(step, at)| (*at, *step))
            .collect();
        new.sort_unstable();
        for (at, step) in new {
            println!("{:>8.3} s  {}", at.as_secs_f64(), words(step));
            said.insert(step);
        }
        if !drawn && said.contains(&Step::Running) && observer.output(&job)?.len() == pods {
            output(observer, &job)?;
            slices(rig, "gpus").await?;
            println!();
            drawn = true;
        }
        if drawn && said.contains(&Step::Released) {
            return steps.get(&Step::Running).copied().context("no container has run");
        }
        if begun.elapsed() > crate::PATIENCE {
            bail!("{} got no further than {said:?} in {} s", job.name, crate::PATIENCE.as_secs());
        }
        tokio::time::sleep(FRAME).await;
    }
}

fn output(observer: &Observer<'_>, job: &Submitted) -> Result<()> {
    for line in observer.output(job)? {
        println!("            container: {}", line.text.trim_end());
    }
    Ok(())
}

fn words(step: Step) -> &'static str {
    match step {
        Step::Reserved => "Kueue has reserved quota",
        Step::Claimed => "the controller has chosen the slice and written its claim",
        Step::Made => "the agent has made the slice",
        Step::Acknowledged => "the kubelet has taken it up",
        Step::Shown => "the Node shows it",
        Step::Ready => "the admission check is Ready",
        Step::Bound => "the pod is released from its gate and bound to the node",
        Step::Running => "the container runs",
        Step::Finished => "the workload is finished",
        Step::Released => "its claim is released",
    }
}

/// Shows what `kubectl slices` shows.
async fn slices(rig: &Rig, view: &str) -> Result<()> {
    println!("\n$ kubectl slices {view}");
    let status = tokio::process::Command::new(Operator::find()?.kubectl_slices())
        .arg(view)
        .env("KUBECONFIG", rig.kubeconfig())
        .status()
        .await
        .context("run kubectl-slices")?;
    ensure!(status.success(), "kubectl-slices {view} failed");
    Ok(())
}

/// GPU instances that NVML knows of, and CDI specifications of slices, on the node.
fn left(real: &RealOperator<'_>) -> Result<(usize, usize)> {
    let instances = real.gpu_state()?.instances()?.len();
    let folder = real.node.path("/run/cdi")?;
    let files = fs::read_dir(&folder).with_context(|| format!("read {}", folder.display()))?;
    let is_slice = |name: &str| name.starts_with("slicegate") && name.contains("GPU-");
    let names = files.filter_map(|file| file.ok()?.file_name().into_string().ok());
    Ok((instances, names.filter(|name| is_slice(name)).count()))
}
