//! What the controller counts for chargeback, beside what was the case: every figure is held between times that the test has
//! observed before and after.

use std::collections::BTreeMap;
use std::time::Instant;

use anyhow::{Context, Result};
use k8s_openapi::api::batch::v1::Job;
use slicegate_rig::operator::GpuNode;

use crate::support::{World, get, job};

const FIRST: &str = "controller";
const SECOND: &str = "controller-2";

/// What is shown of one namespace, LocalQueue and profile.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
struct Shown {
    /// Slice-seconds.
    used: f64,
    idle: f64,
    /// MiB-seconds.
    used_mib: f64,
    idle_mib: f64,
}

impl Shown {
    fn reserved(self) -> f64 {
        self.used + self.idle
    }
}

/// All that a replica shows, by `namespace/queue/profile`.
async fn shown(world: &World, replica: &str) -> Result<BTreeMap<String, Shown>> {
    let process = world.rig.process(replica).context("no such replica")?;
    let text = get(process.spec().port.context("port")?, "/metrics").await?;
    let mut all: BTreeMap<String, Shown> = BTreeMap::new();
    for line in text.lines().filter(|line| line.starts_with("slicegate_slice_")) {
        let (name, rest) = line.split_once('{').context("no labels")?;
        let (labels, value) = rest.split_once("} ").context("no value")?;
        let label = |name: &str| {
            let (_, rest) = labels.split_once(&format!("{name}=\""))?;
            Some(rest.split_once('"')?.0)
        };
        let [namespace, queue, profile, state] =
            ["namespace", "local_queue", "profile", "state"].map(|name| label(name).unwrap_or("none"));
        let shown = all.entry(format!("{namespace}/{queue}/{profile}")).or_default();
        let figure = match (name, state) {
            ("slicegate_slice_seconds_total", "used") => &mut shown.used,
            ("slicegate_slice_seconds_total", "idle") => &mut shown.idle,
            ("slicegate_slice_memory_mib_seconds_total", "used") => &mut shown.used_mib,
            ("slicegate_slice_memory_mib_seconds_total", "idle") => &mut shown.idle_mib,
            _ => panic!("{line}"),
        };
        *figure = value.parse()?;
    }
    Ok(all)
}

async fn shown_of(world: &World, replica: &str, account: &str) -> Result<Shown> {
    Ok(shown(world, replica).await?.get(account).copied().unwrap_or_default())
}

/// Waits until a figure has come to more than this.
async fn until_more(world: &World, replica: &str, account: &str, than: f64) -> Result<Shown> {
    world
        .until(&format!("{account} has used more than {than} s"), || async {
            Ok(Some(shown_of(world, replica, account).await?).filter(|shown| shown.used > than))
        })
        .await
}

async fn until_in_use(world: &World, count: usize) -> Result<()> {
    world
        .until(&format!("{count} slices are in the hands of pods"), || async {
            let nodes = world.mig_nodes().await?;
            let held = nodes.iter().flat_map(|n| n.status.iter().flat_map(|s| &s.slices));
            Ok(held.filter(|slice| slice.pod.is_some()).count() == count)
        })
        .await
}

async fn until_claimed(world: &World) -> Result<()> {
    world
        .until("slices are claimed", || async {
            Ok(world.mig_nodes().await?.iter().any(|node| !node.spec.claims.is_empty()))
        })
        .await
}

fn seconds(since: Instant, until: Instant) -> f64 {
    until.duration_since(since).as_secs_f64()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_job_has_is_charged_to_its_queue_for_as_long_as_it_has_it() -> Result<()> {
    let world = World::with(vec![GpuNode::a30("gpu-a30")]).await?;
    let (mine, others) = ("team-a/mig/1g.6gb", "team-b/mig/2g.12gb");
    world.namespace("team-a").await?;
    world.namespace("team-b").await?;
    assert_eq!(shown(&world, FIRST).await?, BTreeMap::new());

    let submitted = Instant::now();
    world.submit(&job("team-a", "pair", 2, &[("1g.6gb", 1)], "1000")).await?;
    until_claimed(&world).await?;
    let claimed = Instant::now();
    until_in_use(&world, 2).await?;
    let running = Instant::now();
    until_more(&world, FIRST, mine, 2.0).await?;
    let before = Instant::now();
    let all = shown(&world, FIRST).await?;
    let after = Instant::now();
    assert_eq!(all.keys().collect::<Vec<_>>(), [mine], "nobody else is charged");
    let halfway = all[mine];
    assert!(halfway.used >= 2.0 * seconds(running, before), "{halfway:?}");
    assert!(halfway.reserved() >= 2.0 * seconds(claimed, before), "{halfway:?}");
    assert!(halfway.reserved() <= 2.0 * seconds(submitted, after), "{halfway:?}");
    assert!(halfway.idle > 0.0, "the pods came after the slices: {halfway:?}");
    let models = world.mig_node("gpu-a30").await?.status.context("status")?.models;
    let profile = models[0].profiles.iter().find(|profile| profile.name == "1g.6gb").context("1g.6gb")?;
    #[expect(clippy::cast_precision_loss, reason = "small")]
    let mib = profile.memory_mib as f64;
    assert!((halfway.used_mib / halfway.used - mib).abs() < 0.01, "{halfway:?}, {mib} MiB each");
    assert!((halfway.idle_mib / halfway.idle - mib).abs() < 0.01, "{halfway:?}, {mib} MiB each");

    let ending = Instant::now();
    for pod in world.pods("team-a").await? {
        let name = pod.metadata.name.context("name")?;
        let ends = "slicegate.dev/run-seconds=0.1";
        world.rig.kubectl(["-n", "team-a", "annotate", "--overwrite", "pod", &name, ends]).await?;
    }
    world.until("it is complete", || world.job_done("team-a", "pair")).await?;
    world.until_released().await?;
    let settled = until_settled(&world, mine).await?;
    let over = Instant::now();
    let status = world.api::<Job>("team-a").get("pair").await?.status.context("status")?;
    let (begun, done) = (status.start_time.context("start")?.0, status.completion_time.context("end")?.0);
    let took = done.duration_since(begun).as_secs_f64();
    assert!(settled.used >= 2.0 * seconds(running, ending), "{settled:?}");
    // The Job's times are whole seconds.
    assert!(settled.used <= 2.0 * (took + 2.0), "{settled:?}, the Job took {took} s");
    assert!(settled.reserved() <= 2.0 * seconds(submitted, over), "{settled:?}");

    world.submit(&job("team-b", "other", 1, &[("2g.12gb", 1)], "1000")).await?;
    until_more(&world, FIRST, others, 1.0).await?;
    assert_eq!(shown_of(&world, FIRST, mine).await?, settled, "time has passed, and costs it nothing");
    world.rig.down().await
}

/// Waits until two looks show the same.
async fn until_settled(world: &World, account: &str) -> Result<Shown> {
    world
        .until(&format!("nothing is charged to {account} any more"), || async {
            let before = shown_of(world, FIRST, account).await?;
            Ok(Some(shown_of(world, FIRST, account).await?).filter(|after| *after == before))
        })
        .await
}

#[tokio::test(flavor = "multi_thread")]
async fn of_two_replicas_the_one_that_leads_counts() -> Result<()> {
    let world = World::with(vec![GpuNode::a30("gpu-a30")]).await?;
    let kubeconfig = world.operator.controller_kubeconfig(&world.rig).await?;
    world.operator.start_replica(&world.rig, SECOND, &kubeconfig).await?;
    let account = "default/mig/1g.6gb";
    let submitted = Instant::now();
    world.submit(&job("default", "pair", 2, &[("1g.6gb", 1)], "1000")).await?;
    until_in_use(&world, 2).await?;
    until_more(&world, FIRST, account, 1.0).await?;
    assert_eq!(shown(&world, SECOND).await?, BTreeMap::new(), "the other stands by");
    let first = shown_of(&world, FIRST, account).await?;

    let handed_over = Instant::now();
    let leader = world.rig.process(FIRST).context("no controller")?;
    leader.terminate().await?;
    world
        .until("the other counts", || async { Ok(shown(&world, SECOND).await?.contains_key(account)) })
        .await?;
    let counts = Instant::now();
    until_more(&world, SECOND, account, 1.0).await?;
    let before = Instant::now();
    let second = shown_of(&world, SECOND, account).await?;
    let after = Instant::now();
    assert!(second.used >= 2.0 * seconds(counts, before), "{second:?}");
    assert!(second.reserved() <= 2.0 * seconds(handed_over, after), "it begins with nothing: {second:?}");
    assert!(
        first.reserved() + second.reserved() <= 2.0 * seconds(submitted, after),
        "{first:?} and {second:?}: nothing is counted twice"
    );
    world.rig.down().await
}
