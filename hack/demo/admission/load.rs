//! What the parts of the cluster take of the processors, and what is left to others.

use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

use anyhow::{Result, bail};
use slicegate_rig::Rig;

/// Clock ticks of `/proc` in a second (`USER_HZ`), which user space sees on every architecture of Linux that we build for.
const TICKS: f64 = 100.0;
/// The parts of the control plane; all the rest is ours.
const PARTS: [&str; 6] =
    ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kueue", "kwok"];

/// Processor time in seconds, by part; `others` is what processes took that are no part of the benchmark.
pub type Load = BTreeMap<&'static str, f64>;

/// Processor time until now.
pub fn now(rig: &Rig) -> Load {
    let pids = |name: &str| rig.process(name).map(|process| process.pid());
    let mut load: Load =
        PARTS.into_iter().filter_map(|part| Some((part, taken(&pids(part)?.to_string())))).collect();
    if let Some(pid) = pids("controller") {
        load.insert("controller", taken(&pid.to_string()));
    }
    let agents = agents(rig);
    load.insert("agents", agents.iter().map(|pid| taken(&pid.to_string())).sum());
    load.insert("benchmark", taken("self"));
    let ours: f64 = load.values().sum();
    load.insert("others", (busy() - ours).max(0.0));
    load
}

/// What has been added since `before`.
pub fn since(before: &Load, after: &Load) -> Load {
    after.iter().map(|(part, time)| (*part, (time - before.get(part).unwrap_or(&0.0)).max(0.0))).collect()
}

/// Waits until the cluster has nothing left to do: what the one before has left to be done is not the next one's.
pub async fn until_quiet(rig: &Rig) -> Result<()> {
    const LOOK: Duration = Duration::from_millis(500);
    const QUIET: f64 = 0.4;
    for _ in 0..240 {
        let before = now(rig);
        tokio::time::sleep(LOOK).await;
        let load = since(&before, &now(rig));
        let ours: f64 = load.iter().filter(|(part, _)| **part != "others").map(|(_, time)| time).sum();
        if ours / LOOK.as_secs_f64() < QUIET {
            return Ok(());
        }
    }
    bail!("the cluster does not come to rest; see its logs")
}

fn agents(rig: &Rig) -> Vec<u32> {
    let names = (1..=super::stage::NODES).map(|n| format!("agent-bench-{n}"));
    let small = ["agent-small-1".to_owned(), "agent-small-2".to_owned()];
    names.chain(small).filter_map(|name| Some(rig.process(&name)?.pid())).collect()
}

/// Fields 14 and 15 of `/proc/PID/stat`; nothing of a process that is gone.
fn taken(pid: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
    fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / TICKS
}

/// What all processes have taken: user, nice, system, irq and softirq of the first line of `/proc/stat`.
fn busy() -> f64 {
    let stat = fs::read_to_string("/proc/stat").unwrap_or_default();
    let fields: Vec<f64> = stat
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .map(|f| f.parse().unwrap_or(0.0))
        .collect();
    [0, 1, 2, 5, 6].iter().filter_map(|i| fields.get(*i)).sum::<f64>() / TICKS
}
