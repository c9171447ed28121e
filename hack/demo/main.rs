//! `make demo`: the main job, live, on a local cluster with three emulated GPU nodes. `make demo-node`: on a real node, with
//! containers. `make bench-admission`, `make bench-burst` and `make bench-node` measure.

mod admission;
mod bench;
mod burst;
mod node;
mod screen;
mod timeline;
mod watch;

use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use serde_json::{Value, json};
use slicegate_rig::operator::{Operator, three_nodes};
use slicegate_rig::{Options, Rig};
use timeline::{Phase, Timeline};
use tokio::signal::unix::{SignalKind, signal};

/// Longer than any of the steps takes; when it is over, something is wrong.
const PATIENCE: Duration = Duration::from_mins(2);
/// Jobs for the figures of one cold and one warm slice.
const SAMPLES: u32 = 20;

/// Show Slicegate at work.
#[derive(Parser)]
struct Args {
    /// What is shown.
    #[arg(value_enum, default_value = "emulated")]
    what: What,
    /// Leave the cluster up.
    #[arg(long)]
    keep: bool,
    /// Jobs for each figure of bench-node; Jobs by themselves and preemptions of each kind of bench-admission.
    #[arg(long, default_value_t = 20)]
    samples: usize,
    /// Pairs of bursts of bench-admission, with and without Slicegate.
    #[arg(long, default_value_t = 5)]
    pairs: usize,
    /// One-pod Jobs of a burst of bench-admission; a tenth as many with ten pods come on top.
    #[arg(long, default_value_t = 500)]
    jobs: usize,
    /// Jobs submitted a second in a burst of bench-admission; 0: as many as the API server takes.
    #[arg(long, default_value_t = 5.0)]
    rate: f64,
    /// A file for the figures of bench-node or bench-admission and each single time.
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// What there is to be shown.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum What {
    /// Samples, latency and burst on emulated nodes.
    Emulated,
    /// Only the burst: 50 Jobs at once on 4 nodes with 2 A100-40GB each, 1 s per NVML create.
    Burst,
    /// A real node with kubelet, containerd and containers, as root.
    Node,
    /// Only figures: Job created → container running on a real node, as root.
    BenchNode,
    /// Only figures: 500 one-pod and 50 ten-pod Jobs on 20 emulated nodes, with and without Slicegate.
    BenchAdmission,
}

#[tokio::main]
async fn main() -> ExitCode {
    let args = Args::parse();
    let interrupted = async {
        match (signal(SignalKind::interrupt()), signal(SignalKind::terminate())) {
            (Ok(mut interrupt), Ok(mut terminate)) => tokio::select! {
                _ = interrupt.recv() => {}
                _ = terminate.recv() => {}
            },
            _ => std::future::pending().await,
        }
    };
    let outcome = tokio::select! {
        outcome = run(&args) => outcome,
        () = interrupted => Err(anyhow::anyhow!("interrupted")),
    };
    match outcome {
        Ok(summary) => {
            println!("{summary}");
            ExitCode::SUCCESS
        }
        Err(error) => {
            eprintln!("\ndemo: failed: {error:#}");
            if let Ok(options) = Options::standing() {
                let logs = options.dir.join("logs");
                eprintln!("logs: {} (controller.log, agent-*.log, kueue.log, …)", logs.display());
                let _ = slicegate_rig::down(&options.dir).await;
            }
            ExitCode::FAILURE
        }
    }
}

/// Shows what was asked for. Returns the summary.
async fn run(args: &Args) -> Result<String> {
    let options = Options::standing()?;
    let ended = slicegate_rig::down(&options.dir).await?;
    if !ended.is_empty() {
        eprintln!("ended the cluster that an earlier demo had left up");
    }
    let operator = Operator::find()?;
    let options =
        if args.what == What::BenchAdmission { admission::stage::options(options)? } else { options };
    let rig = Rig::up(options).await?;
    let summary = match args.what {
        What::Node => format!("demo-node: ok: {}", node::run(&rig).await?),
        What::BenchNode => {
            format!("bench-node: {}", bench::run(&rig, args.samples, args.json.as_deref()).await?)
        }
        What::BenchAdmission => {
            let extent = admission::Extent {
                pairs: args.pairs,
                jobs: args.jobs,
                rate: args.rate,
                samples: args.samples,
                json: args.json.clone(),
            };
            format!("bench-admission: {}", admission::run(&rig, &operator, &extent).await?)
        }
        What::Emulated | What::Burst => {
            emulated(args.what, &rig, &operator).await?;
            "demo: ok".to_owned()
        }
    };
    if args.keep {
        let kubectl = rig.kubectl_path();
        println!("\nThe cluster is up. End it with: make demo-down");
        println!("  export KUBECONFIG={}", rig.kubeconfig().display());
        println!("Worth trying:");
        println!("  {} apply -k samples", kubectl.display());
        println!("  {} gpus", operator.kubectl_slices().display());
        println!("  {} get mignodes,workloads -A", kubectl.display());
    } else {
        rig.down().await?;
    }
    Ok(summary)
}

/// What is shown on emulated nodes.
async fn emulated(what: What, rig: &Rig, operator: &Operator) -> Result<()> {
    if what == What::Burst {
        rig.apply_kustomize("config/emulated").await?;
        rig.apply_kustomize("kueue").await?;
        operator.start_controller(rig).await?;
    } else {
        eprintln!(
            "installing Slicegate: CRDs, policies, queues, controller, and an agent for each of three nodes"
        );
        operator.install(rig, &three_nodes()).await?;
        samples(rig).await.context("samples")?;
        latency(rig).await.context("latency")?;
    }
    burst::run(rig, operator).await.context("burst")
}

/// Submits the samples and shows how each of them goes.
async fn samples(rig: &Rig) -> Result<()> {
    let timeline = Timeline::follow(rig.client().await?, "default");
    let show = screen::Screen::start(timeline.clone());
    println!("\nSubmitting samples/ to LocalQueue mig:");
    rig.apply_kustomize("samples").await?;
    for name in ["vectoradd", "sweep", "pipeline", "vllm-batch"] {
        until(&format!("{name} has run and its slices are released"), || {
            timeline.reached(name, Phase::Released)
        })
        .await?;
    }
    show.finish().await;
    println!("\nTime of each phase, in ms since the one before (queued: since it was submitted):\n");
    print!("{}", timeline.table());
    Ok(())
}

/// Measures quota reserved → Ready on an idle cluster, one Job after another: first each on a slice that must be made,
/// then each on an idle one.
async fn latency(rig: &Rig) -> Result<()> {
    let client = rig.client().await?;
    let timeline = Timeline::follow(client.clone(), "default");
    let jobs: kube::Api<k8s_openapi::api::batch::v1::Job> = kube::Api::namespaced(client, "default");
    for (kind, profile) in [("cold", "1g.20gb"), ("warm", "1g.20gb")] {
        for number in 0..SAMPLES {
            let name = format!("{kind}-{number}");
            // The cold ones run until all have been started, so that none finds a slice of another's.
            let job = job(&name, profile, if kind == "cold" { "8" } else { "0.1" });
            jobs.create(&kube::api::PostParams::default(), &serde_json::from_value(job)?).await?;
            let phase = if kind == "cold" { Phase::Running } else { Phase::Released };
            until(&format!("{name} is {phase:?}"), || timeline.reached(&name, phase)).await?;
        }
        for number in 0..SAMPLES {
            let name = format!("{kind}-{number}");
            until(&format!("{name} is released"), || timeline.reached(&name, Phase::Released)).await?;
        }
    }
    println!("\nQuota reserved → Ready, {SAMPLES} one-slice Jobs one after another, instantaneous NVML:");
    for (kind, what) in [("cold", "slice made  "), ("warm", "slice reused")] {
        let times = timeline.between(&format!("{kind}-"), Phase::Reserved, Phase::Ready);
        println!("  {what}  p50 {:>4} ms   p99 {:>4} ms", percentile(&times, 50), percentile(&times, 99));
    }
    Ok(())
}

/// A Job with one slice.
fn job(name: &str, profile: &str, seconds: &str) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "default", "labels": {"kueue.x-k8s.io/queue-name": "mig"}},
        "spec": {"template": {
            "metadata": {"annotations": {"slicegate.dev/run-seconds": seconds}},
            "spec": {"restartPolicy": "Never", "containers": [{
                "name": "main",
                "image": "nvcr.io/nvidia/k8s/cuda-sample:vectoradd-cuda12.5.0-ubi8",
                "resources": {
                    "requests": {"cpu": "100m", "memory": "128Mi"},
                    "limits": {format!("nvidia.com/mig-{profile}"): 1},
                },
            }]},
        }},
    })
}

/// The p-th percentile by nearest rank; 0 of nothing.
fn percentile<T: Copy + Default + Ord>(times: &[T], p: usize) -> T {
    let mut sorted = times.to_vec();
    sorted.sort_unstable();
    let rank = (sorted.len() * p).div_ceil(100).max(1);
    sorted.get(rank - 1).copied().unwrap_or_default()
}

/// Waits until a condition holds.
async fn until(what: &str, condition: impl Fn() -> bool) -> Result<()> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while !condition() {
        if tokio::time::Instant::now() > deadline {
            bail!("waited {} s in vain until {what}", PATIENCE.as_secs());
        }
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    Ok(())
}
