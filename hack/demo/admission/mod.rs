//! `make bench-admission`: what Slicegate adds to the admission of 500 one-pod Jobs and 50 ten-pod Jobs, against the same Jobs
//! through a ClusterQueue without a check, and through one with the least check that there can be.

mod alone;
mod burst;
mod least;
mod load;
mod observer;
mod preemption;
mod report;
pub mod stage;
mod writes;

use std::fs;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use k8s_openapi::api::batch::v1::Job;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use slicegate_rig::Rig;
use slicegate_rig::operator::Operator;

use observer::Observer;
use report::Report;
use stage::{LEAST, NAMESPACE, PLAIN_RESOURCE, RESOURCE};
use writes::Audit;

/// Longer than anything here takes, even on a machine with much else to do; when it is over, something is wrong.
const PATIENCE: Duration = Duration::from_mins(5);
/// Times that a request is sent again when there is no answer.
const ATTEMPTS: usize = 3;
/// Longer than the benchmark takes.
const KEPT: u32 = 86_400;

/// How much is measured.
pub struct Extent {
    /// Pairs of bursts, with and without Slicegate.
    pub pairs: usize,
    /// One-pod Jobs of a burst; a tenth as many with ten pods come on top.
    pub jobs: usize,
    /// Jobs submitted a second; 0: as many as the API server takes from ten clients.
    pub rate: f64,
    /// Jobs by themselves, and preemptions, of each kind.
    pub samples: usize,
    /// A file for the figures and each single time.
    pub json: Option<PathBuf>,
}

/// Through which queue the Jobs go, and what they find.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Setting {
    /// No check, and a resource that is simply there.
    Plain,
    /// The same with a check that is answered at once.
    Least,
    /// Slicegate, with slices that are there.
    Reused,
    /// Slicegate, with no slices: all are made, by an NVML that takes no time.
    Made,
}

/// All of them.
pub const SETTINGS: [Setting; 4] = [Setting::Plain, Setting::Least, Setting::Reused, Setting::Made];

/// What is measured with.
pub struct Bench<'a> {
    rig: &'a Rig,
    client: Client,
    observer: Observer,
    audit: Audit,
}

/// Measures, and prints tables. Returns the summary.
pub async fn run(rig: &Rig, operator: &Operator, extent: &Extent) -> Result<String> {
    eprintln!("{} nodes, queues, controller, and an agent for each node", stage::NODES);
    stage::set_up(rig, operator).await?;
    let client = rig.client().await?;
    let _answering = least::answer(&client).await?;
    let mut bench = Bench {
        rig,
        observer: Observer::new(&client),
        audit: Audit::new(stage::audit_log(rig.dir())),
        client,
    };
    let mut report = Report::new(extent);
    eprintln!("warming up");
    bench.burst(Setting::Made, 0, extent).await.context("warm-up")?;
    for round in 1..=extent.pairs {
        for setting in order(round) {
            eprintln!("burst {round} of {}, {}", extent.pairs, setting.name());
            report.bursts.push(bench.burst(setting, round, extent).await.context(setting.name())?);
        }
    }
    eprintln!("{} Jobs by themselves, in each setting", extent.samples);
    report.alone = bench.alone(extent.samples).await.context("Jobs by themselves")?;
    eprintln!("{} preemptions of each kind", extent.samples);
    report.preemptions = bench.preemptions(extent.samples).await.context("preemption")?;

    println!("\n{}", report.text());
    if let Some(file) = &extent.json {
        fs::write(file, serde_json::to_string_pretty(&report.json())?)
            .with_context(|| format!("write {}", file.display()))?;
        println!("every single time: {}\n", file.display());
    }
    Ok(report.summary())
}

/// The settings of a round. Each pair is measured one directly after the other, and in turn the one and the other first. The
/// least check and slices to be made explain the figures: once is enough.
fn order(round: usize) -> Vec<Setting> {
    match round {
        1 => vec![Setting::Plain, Setting::Reused, Setting::Least, Setting::Made],
        _ if round.is_multiple_of(2) => vec![Setting::Reused, Setting::Plain],
        _ => vec![Setting::Plain, Setting::Reused],
    }
}

impl Setting {
    /// For people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Plain => "without a check",
            Self::Least => "least check",
            Self::Reused => "Slicegate, slices reused",
            Self::Made => "Slicegate, slices made",
        }
    }

    /// Whether Slicegate takes part.
    pub fn is_ours(self) -> bool {
        matches!(self, Self::Reused | Self::Made)
    }

    fn queue(self) -> &'static str {
        match self {
            Self::Plain => "plain",
            Self::Least => LEAST,
            Self::Reused | Self::Made => "slicegate",
        }
    }

    fn resource(self) -> &'static str {
        if self.is_ours() { RESOURCE } else { PLAIN_RESOURCE }
    }
}

impl Bench<'_> {
    fn jobs(&self) -> Api<Job> {
        Api::namespaced(self.client.clone(), NAMESPACE)
    }

    /// Sees to it that a setting finds what it is to find.
    async fn prepare(&self, setting: Setting) -> Result<()> {
        if setting == Setting::Made {
            stage::keep_idle_slices(&self.client, 0).await?;
            until("no slice is there", || self.observer.is_without_slices()).await?;
            stage::keep_idle_slices(&self.client, KEPT).await?;
        }
        load::until_quiet(self.rig).await?;
        self.observer.begin();
        Ok(())
    }

    async fn submit(&self, job: &Value) -> Result<()> {
        let job: Job = serde_json::from_value(job.clone())?;
        let sent = std::cell::Cell::new(0);
        let created = until_answered(async || {
            sent.set(sent.get() + 1);
            self.jobs().create(&PostParams::default(), &job).await
        });
        match created.await {
            // The first was taken after all.
            Err(kube::Error::Api(status)) if status.code == 409 && sent.get() > 1 => Ok(()),
            result => Ok(result.map(drop)?),
        }
    }

    /// Deletes all Jobs and waits until nothing is left of them.
    async fn clear(&self) -> Result<()> {
        let (delete, all) = (DeleteParams::background(), ListParams::default());
        until_answered(async || self.jobs().delete_collection(&delete, &all).await).await?;
        until("all is given back", || self.observer.is_empty()).await
    }
}

/// Sends the same request again while there is no answer: a burst takes longer than the API server keeps an idle connection.
async fn until_answered<T>(send: impl AsyncFn() -> kube::Result<T>) -> kube::Result<T> {
    let mut attempt = 0;
    loop {
        match send().await {
            Err(error) if attempt < ATTEMPTS && !matches!(error, kube::Error::Api(_)) => attempt += 1,
            result => return result,
        }
    }
}

/// A Job whose pods run until it is deleted.
fn job(name: &str, queue: &str, pods: usize, cpu: &str, resource: &str) -> Value {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": NAMESPACE, "labels": {"kueue.x-k8s.io/queue-name": queue}},
        "spec": {
            "parallelism": pods,
            "completions": pods,
            "template": {
                "metadata": {"annotations": {"slicegate.dev/run-seconds": "86400"}},
                "spec": {"restartPolicy": "Never", "containers": [{
                    "name": "main",
                    "image": "example.com/vectoradd",
                    "resources": {"requests": {"cpu": cpu, "memory": "64Mi"}, "limits": {resource: 1}},
                }]},
            },
        },
    })
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
