//! Many short Jobs whose slices displace each other's on one GPU: pods come, are allocated to and end while drains begin.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::jiff::Timestamp;
use kube::api::DeleteParams;
use kube::{Api, ResourceExt};
use slicegate::api::MIGNode;
use slicegate::api::mig_node::SliceState;
use slicegate_rig::real_operator::Gpus;
use tokio::task::JoinHandle;

use super::STAY;
use crate::support::{NODE, World, on_a_node_with};

/// Says when it has its slice and when it lets go of it.
const SHORT: &str =
    "uuid=$(env | grep SLICEGATE_MIG | cut -d= -f2); echo has $uuid; sleep 0.3; echo leaves $uuid";
/// They fit on a GPU only some at a time, in ever other places.
const PROFILES: [&str; 6] = ["3g.40gb", "1g.10gb", "2g.20gb", "1g.10gb", "7g.80gb", "1g.10gb"];
/// What NVML takes on an A100, about.
const LATENCIES: [(&str, u64); 2] =
    [("nvmlDeviceCreateGpuInstanceWithPlacement", 130), ("nvmlGpuInstanceDestroy", 100)];
const DURATION: Duration = Duration::from_secs(25);
/// Jobs that are under way at a time.
const CROWD: usize = 12;
/// One Job in so many is deleted as soon as it is admitted: its pod goes at any moment of its way to the slice.
const CUT_SHORT: usize = 5;

/// When a pod had a slice, by its own word.
struct Tenure {
    pod: String,
    uuid: String,
    from: Timestamp,
    to: Timestamp,
}

#[test]
fn pods_that_are_allocated_to_while_drains_begin_share_no_slice_and_lose_none() {
    let latency_ms = LATENCIES.into_iter().map(|(function, ms)| (function.to_owned(), ms)).collect();
    on_a_node_with(Gpus { latency_ms, ..Gpus::a100(1) }, "storm", async |world, namespace| {
        let watch = Watch::begin(world)?;
        let begun = Instant::now();
        let mut created = 0;
        while begun.elapsed() < DURATION {
            let jobs = world.list::<Job>(namespace).await?;
            cut_short(world, namespace, &jobs).await?;
            for _ in jobs.iter().filter(|job| !is_complete(job)).count()..CROWD {
                let profile = PROFILES[created % PROFILES.len()];
                let script = if created % CUT_SHORT == 0 { STAY } else { SHORT };
                world.submit(namespace, &name(created), profile, script).await?;
                created += 1;
            }
        }
        world
            .until("every Job is complete", || async {
                let jobs = world.list::<Job>(namespace).await?;
                cut_short(world, namespace, &jobs).await?;
                Ok(jobs.iter().all(is_complete))
            })
            .await?;
        let completed = world.list::<Job>(namespace).await?.len();
        world.nothing_leaks(&[]).await?;
        let Seen { looks, violations } = watch.end();
        ensure!(violations.is_empty(), "{violations:?}");

        let tenures = tenures(world, namespace).await?;
        ensure!(
            completed == created - created.div_ceil(CUT_SHORT),
            "{completed} of {created} Jobs were completed"
        );
        ensure!(tenures.len() == completed, "{} pods of {completed} Jobs had a slice", tenures.len());
        let mut by_slice: BTreeMap<&str, Vec<&Tenure>> = BTreeMap::new();
        for tenure in &tenures {
            by_slice.entry(&tenure.uuid).or_default().push(tenure);
        }
        for (uuid, tenures) in &mut by_slice {
            tenures.sort_by_key(|t| t.from);
            for pair in tenures.windows(2) {
                let (first, second) = (pair[0], pair[1]);
                ensure!(first.to < second.from, "{} and {} had {uuid} together", first.pod, second.pod);
            }
        }
        for tenure in &tenures {
            let gone = looks.iter().find(|look| {
                tenure.from <= look.begun && look.ended <= tenure.to && !look.there.contains(&tenure.uuid)
            });
            ensure!(gone.is_none(), "{} had {} when it was not there: {gone:?}", tenure.pod, tenure.uuid);
        }
        // Otherwise nothing was put to the test.
        ensure!(completed >= 15, "only {completed} Jobs in {DURATION:?}");
        let made: BTreeSet<&String> = looks.iter().flat_map(|look| &look.there).collect();
        ensure!(made.len() >= 8, "only {} slices were made for {created} Jobs", made.len());
        ensure!(looks.len() > 100, "only {} looks at NVML", looks.len());
        let refused: Vec<String> = world
            .list::<Pod>(namespace)
            .await?
            .iter()
            .filter(|pod| {
                let reason = pod.status.as_ref().and_then(|status| status.reason.as_deref());
                reason == Some("UnexpectedAdmissionError")
            })
            .map(ResourceExt::name_any)
            .collect();
        ensure!(refused.is_empty(), "the kubelet refused {refused:?}");
        Ok(())
    });
}

fn name(number: usize) -> String {
    format!("job-{number}")
}

/// Deletes the admitted ones of the Jobs that are to be cut short.
async fn cut_short(world: &World<'_>, namespace: &str, jobs: &[Job]) -> Result<()> {
    let is_admitted = |job: &&Job| job.spec.as_ref().and_then(|spec| spec.suspend) == Some(false);
    for job in jobs.iter().filter(is_admitted) {
        let number =
            job.name_any().rsplit('-').next().and_then(|n| n.parse::<usize>().ok()).context("a number")?;
        if number % CUT_SHORT == 0 && job.metadata.deletion_timestamp.is_none() {
            world.api::<Job>(namespace).delete(&name(number), &DeleteParams::background()).await?;
        }
    }
    Ok(())
}

fn is_complete(job: &Job) -> bool {
    job.status.as_ref().and_then(|status| status.succeeded) == Some(1)
}

/// What is wrong with a MIGNode: overlaps in spec and in status, and slices that failed where nothing fails.
fn violations(node: MIGNode) -> BTreeSet<String> {
    let mut found = BTreeSet::new();
    for gpu in &node.spec.gpus {
        found.extend(overlap(gpu.slices.iter().map(|s| (s.start, s.size)), "spec"));
    }
    let slices = node.status.unwrap_or_default().slices;
    let existing = slices.iter().filter(|s| s.gpu_instance_id.is_some());
    found.extend(overlap(existing.map(|s| (s.start, s.size)), "status"));
    found.extend(slices.iter().filter(|s| s.state == SliceState::Failed).map(|s| format!("{s:?}")));
    found
}

fn overlap(places: impl Iterator<Item = (u8, u8)>, of: &str) -> Option<String> {
    let mut places: Vec<_> = places.collect();
    places.sort_unstable();
    let overlap = places.windows(2).find(|pair| pair[0].0 + pair[0].1 > pair[1].0)?;
    Some(format!("slices overlap in {of}: {overlap:?}"))
}

/// What each pod said.
async fn tenures(world: &World<'_>, namespace: &str) -> Result<Vec<Tenure>> {
    let mut tenures = Vec::new();
    for pod in world.list::<Pod>(namespace).await? {
        let pod = pod.name_any();
        let log = world.real.node.logs(namespace, &pod, "main")?;
        let said = |what: &str| -> Result<Option<(Timestamp, String)>> {
            let words = log.lines().map(|line| line.split(' ').collect::<Vec<_>>());
            let found = words.into_iter().find(|words| words.get(3) == Some(&what));
            found
                .map(|words| Ok((words[0].parse()?, (*words.get(4).context("a UUID")?).to_owned())))
                .transpose()
        };
        let (Some((from, uuid)), Some((to, _))) = (said("has")?, said("leaves")?) else { continue };
        ensure!(uuid.starts_with("MIG-"), "{pod} had {uuid:?}");
        tenures.push(Tenure { pod, uuid, from, to });
    }
    Ok(tenures)
}

/// Looks at NVML and the MIGNode all the time.
struct Watch {
    seen: Arc<Mutex<Seen>>,
    task: JoinHandle<()>,
}

#[derive(Default)]
struct Seen {
    looks: Vec<Look>,
    violations: BTreeSet<String>,
}

/// The MIG devices that there were.
#[derive(Debug)]
struct Look {
    begun: Timestamp,
    ended: Timestamp,
    there: BTreeSet<String>,
}

impl Watch {
    fn begin(world: &World<'_>) -> Result<Self> {
        let state = world.real.gpu_state()?;
        let nodes: Api<MIGNode> = Api::all(world.client.clone());
        let seen = Arc::new(Mutex::new(Seen::default()));
        let noted = seen.clone();
        let task = tokio::spawn(async move {
            let mut next = tokio::time::interval(Duration::from_millis(20));
            loop {
                next.tick().await;
                let begun = Timestamp::now();
                if let Ok(instances) = state.instances() {
                    let there = instances.iter().filter_map(|i| i.mig_uuid().map(str::to_owned)).collect();
                    noted.lock().unwrap().looks.push(Look { begun, ended: Timestamp::now(), there });
                }
                if let Ok(node) = nodes.get(NODE).await {
                    noted.lock().unwrap().violations.extend(violations(node));
                }
            }
        });
        Ok(Self { seen, task })
    }

    fn end(self) -> Seen {
        self.task.abort();
        std::mem::take(&mut self.seen.lock().unwrap())
    }
}
