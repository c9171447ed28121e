//! Two replicas of the controller: one leads, the other takes over, and what the first may still do harms nobody.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;
use slicegate::api::convert::mig;
use slicegate::api::{kueue, names};
use slicegate::controller::writer::{CheckEntry, Outcome, Writer};
use slicegate_core::id::{NodeName, WorkloadKey};
use slicegate_core::node::Version;
use slicegate_core::plan::PodKey;
use slicegate_core::workload::CheckState;
use slicegate_rig::operator::{GpuNode, three_nodes};
use slicegate_rig::{Process, Signal};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinSet;

use crate::checker::Checker;
use crate::sixty_jobs::{Random, done, submit_all};
use crate::support::{World, get, job};

const FIRST: &str = "controller";
const SECOND: &str = "controller-2";
/// Lease duration, renew deadline and retry period of a few seconds, for tests that wait until a lease expires.
const SHORT: [&str; 3] =
    ["--leader-elect-lease-duration=6", "--leader-elect-renew-deadline=4", "--leader-elect-retry-period=1"];
const SHORT_DURATION: Duration = Duration::from_secs(6);
const SHORT_RETRY: Duration = Duration::from_secs(1);
/// What a loaded machine may add.
const SLACK: Duration = Duration::from_secs(2);

/// A cluster with two replicas, of which the first leads.
async fn pair(nodes: Vec<GpuNode>, args: &[&str]) -> Result<World> {
    let world = World::with_args(nodes, args).await?;
    let kubeconfig = world.operator.controller_kubeconfig(&world.rig).await?;
    world.operator.start_replica(&world.rig, SECOND, &kubeconfig).await?;
    assert_eq!(holder(&world).await?, FIRST);
    Ok(world)
}

async fn lease(world: &World) -> Result<LeaseSpec> {
    let lease = world.api::<Lease>("slicegate-system").get("slicegate-controller").await?;
    lease.spec.context("a Lease without a spec")
}

async fn holder(world: &World) -> Result<String> {
    Ok(lease(world).await?.holder_identity.unwrap_or_default())
}

async fn until_leads(world: &World, name: &str) -> Result<()> {
    world.until(&format!("{name} leads"), || async { Ok(holder(world).await? == name) }).await
}

fn process(world: &World, name: &str) -> Result<Process> {
    world.rig.process(name).with_context(|| format!("no process {name}"))
}

/// What a replica says of itself: ready, and leader or standby.
async fn role(world: &World, name: &str) -> Result<String> {
    let port = process(world, name)?.spec().port.context("port")?;
    let answer = get(port, "/readyz").await?;
    let leads = get(port, "/metrics").await?.contains("\nslicegate_leader 1\n");
    let role = answer.lines().last().unwrap_or_default().to_owned();
    assert_eq!(role == "ok (leader)", leads, "/readyz and /metrics agree");
    Ok(role)
}

async fn until_done(world: &World, name: &str) -> Result<()> {
    world.until(&format!("{name} is complete"), || world.job_done("default", name)).await
}

/// The uids of the pods of the namespace, once as many as these have slices.
async fn until_in_use(world: &World, node: &str, count: u32) -> Result<Vec<Option<String>>> {
    world
        .until(&format!("{count} slices are in use"), || async {
            let status = world.mig_node(node).await?.status.unwrap_or_default();
            Ok(status.summary.is_some_and(|s| s.in_use == count))
        })
        .await?;
    Ok(world.pods("default").await?.iter().map(ResourceExt::uid).collect())
}

async fn terms(world: &World) -> Result<Vec<Option<String>>> {
    let nodes = world.mig_nodes().await?;
    Ok(nodes.iter().map(|node| node.annotations().get(names::TERM).cloned()).collect())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_ends_hands_over_at_once_and_no_job_notices() -> Result<()> {
    let world = pair(vec![GpuNode::a100("gpu-a100")], &[]).await?;
    assert_eq!(role(&world, FIRST).await?, "ok (leader)");
    assert_eq!(role(&world, SECOND).await?, "ok (standby)");
    world.submit(&job("default", "running", 2, &[("3g.40gb", 1)], "4")).await?;
    let pods = until_in_use(&world, "gpu-a100", 2).await?;
    let terms_before = terms(&world).await?;

    let begun = Instant::now();
    process(&world, FIRST)?.signal(Signal::TERM);
    until_leads(&world, SECOND).await?;
    let elapsed = begun.elapsed();
    println!("handed over in {elapsed:.2?}");
    assert!(elapsed < SLACK, "the lease lasts 15 s, so it has been released: {elapsed:?}");
    world.submit(&job("default", "new", 1, &[("1g.10gb", 1)], "0.2")).await?;
    until_done(&world, "new").await?;
    until_done(&world, "running").await?;
    let left: Vec<_> = world.pods("default").await?.iter().map(ResourceExt::uid).collect();
    assert!(pods.iter().all(|pod| left.contains(pod)), "a pod was replaced");

    process(&world, FIRST)?.wait(Duration::from_secs(10)).await?;
    assert!(process(&world, FIRST)?.exit_status().is_some_and(|status| status.success()));
    assert_eq!(lease(&world).await?.lease_transitions, Some(1));
    assert_eq!(terms(&world).await?, terms_before, "nothing was under way that had to be fenced off");
    world
        .until("Events of the Lease tell of it", || async {
            let events = world.list::<k8s_openapi::api::core::v1::Event>("slicegate-system").await?;
            let said: Vec<_> = events
                .into_iter()
                .filter(|e| e.reason.as_deref() == Some("LeaderElection"))
                .filter_map(|e| e.message)
                .collect();
            let all =
                ["controller became leader", "controller stopped leading", "controller-2 became leader"];
            Ok(all.iter().all(|text| said.iter().any(|s| s == text)))
        })
        .await?;
    // Back again, as after an update, and the other way round.
    process(&world, FIRST)?.restart().await?;
    world.until("the first stands by", || async { Ok(role(&world, FIRST).await? == "ok (standby)") }).await?;
    process(&world, SECOND)?.terminate().await?;
    until_leads(&world, FIRST).await?;
    world.until_released().await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_killed_is_replaced_when_its_lease_has_expired() -> Result<()> {
    let world = pair(vec![GpuNode::a100("gpu-a100")], &SHORT).await?;
    world.submit(&job("default", "running", 2, &[("3g.40gb", 1)], "9")).await?;
    let pods = until_in_use(&world, "gpu-a100", 2).await?;
    let terms_before = terms(&world).await?;

    let begun = Instant::now();
    process(&world, FIRST)?.kill().await?;
    world.submit(&job("default", "new", 1, &[("1g.10gb", 1)], "0.2")).await?;
    until_leads(&world, SECOND).await?;
    let elapsed = begun.elapsed();
    println!("taken over in {elapsed:.2?}");
    assert!(elapsed < SHORT_DURATION + SHORT_RETRY + SLACK, "{elapsed:?}");
    assert!(elapsed + SHORT_RETRY + SLACK > SHORT_DURATION, "its lease had not expired: {elapsed:?}");
    until_done(&world, "new").await?;
    until_done(&world, "running").await?;
    let left: Vec<_> = world.pods("default").await?.iter().map(ResourceExt::uid).collect();
    assert!(pods.iter().all(|pod| left.contains(pod)), "a pod was replaced");
    assert_ne!(terms(&world).await?, terms_before, "what the first may have sent is fenced off");

    process(&world, FIRST)?.restart().await?;
    world.until("the first stands by", || async { Ok(role(&world, FIRST).await? == "ok (standby)") }).await?;
    assert_eq!(holder(&world).await?, SECOND);
    world.until_released().await?;
    world.rig.down().await
}

/// How many Jobs of the load are not complete.
async fn unfinished(world: &World) -> Result<usize> {
    let jobs = Api::<Job>::all(world.client.clone()).list(&ListParams::default()).await?.items;
    let succeeded = |job: &&Job| job.status.as_ref().is_some_and(|s| s.succeeded == Some(1));
    Ok(jobs.len() - jobs.iter().filter(succeeded).count())
}

#[tokio::test(flavor = "multi_thread")]
async fn leaders_that_are_frozen_under_load_do_no_harm_when_they_wake_up() -> Result<()> {
    let world = pair(three_nodes(), &SHORT).await?;
    let checker = Checker::start(&world);
    let mut random = Random::new();
    println!("seed {}", random.0);
    let freezing = async {
        let mut rounds = 0;
        // At rest there is nothing to spoil.
        while rounds < 4 && unfinished(&world).await? >= 10 {
            tokio::time::sleep(Duration::from_millis(random.below(1500))).await;
            let old = holder(&world).await?;
            let new = if old == FIRST { SECOND } else { FIRST };
            let frozen = process(&world, &old)?;
            frozen.signal(Signal::STOP);
            until_leads(&world, new).await?;
            // While the new one takes over, or after.
            tokio::time::sleep(Duration::from_millis(random.below(300))).await;
            frozen.signal(Signal::CONT);
            frozen.wait(Duration::from_secs(10)).await?;
            assert_eq!(frozen.exit_status().and_then(|status| status.code()), Some(1), "{old} steps down");
            let log = frozen.log_tail(20);
            assert!(log.contains("no longer the leader"), "{log}");
            frozen.restart().await?;
            world.rig.until_ready(&frozen).await?;
            rounds += 1;
        }
        anyhow::Ok(rounds)
    };
    let names = submit_all(&world, ["6", "8", "10"]).await?;
    let rounds = freezing.await?;
    println!(
        "{rounds} leaders were frozen, {} of {} Jobs complete then",
        done(&world, &names).await?,
        names.len()
    );
    assert!(rounds >= 2, "the load was over too soon");
    world
        .until("all 60 Jobs are complete", || async { Ok(done(&world, &names).await? == names.len()) })
        .await?;
    for namespace in ["red", "green", "blue"] {
        let failed = |pod: &&Pod| pod.status.as_ref().is_some_and(|s| s.phase.as_deref() == Some("Failed"));
        let pods = world.pods(namespace).await?;
        assert_eq!(pods.iter().filter(failed).map(ResourceExt::name_any).collect::<Vec<_>>(), [""; 0]);
    }
    world.until_released().await?;
    checker.finish(&world).await?;
    world.rig.down().await
}

/// What a leader can have decided before it was frozen, to be sent after it has woken up.
struct Decided {
    node: (NodeName, Version, String),
    waiting: (WorkloadKey, String),
    passed: (WorkloadKey, String),
    pod: (PodKey, String),
    active: slicegate::controller::checks::Verdict,
}

impl Decided {
    async fn now(world: &World) -> Result<Self> {
        let node = world.mig_node("gpu-a30").await?;
        let version = mig::from_api(&node, None).version;
        let term = node.annotations().get(names::TERM).cloned().context("a term")?;
        let workload = async |owner: &str| {
            let workload = world.workload_of("default", owner).await?.context("a Workload")?;
            let key = WorkloadKey {
                namespace: "default".into(),
                name: workload.name_any().into(),
                uid: workload.uid().context("uid")?.into(),
            };
            anyhow::Ok((key, workload.resource_version().context("version")?))
        };
        let pod = world.api::<Pod>("default").get("surplus").await?;
        let pod_key = PodKey {
            namespace: "default".into(),
            name: "surplus".into(),
            uid: pod.uid().context("uid")?.into(),
        };
        let check: kueue::AdmissionCheck = Api::all(world.client.clone()).get("slicegate").await?;
        Ok(Self {
            node: ("gpu-a30".into(), version, term),
            waiting: workload("waiting").await?,
            passed: workload("passed").await?,
            pod: (pod_key, pod.resource_version().context("version")?),
            active: slicegate::controller::checks::Verdict {
                check: "slicegate".to_owned(),
                version: check.resource_version().context("version")?,
                generation: 1,
                active: false,
                reason: "BadParametersRef",
                message: "said by a ghost".to_owned(),
            },
        })
    }

    /// The outcome of each write that rests on other objects than the one that it changes.
    async fn send(&self, writer: &Writer) -> Vec<(&'static str, Outcome)> {
        let (node, version, term) = &self.node;
        let since = slicegate::api::convert::time(slicegate::api::convert::now());
        let check = async |(workload, expect): &(WorkloadKey, String), state: CheckState| {
            let (name, message) = ("slicegate".to_owned(), "said late".to_owned());
            let label = [("main".into(), workload.uid.clone())];
            let entry = CheckEntry::new(name, state, message, since.clone(), &label);
            writer.set_check(workload, expect, entry).await.0
        };
        let nothing = slicegate_core::node::NodeSpec::default();
        vec![
            ("spec", writer.write_spec(node, version, term, &nothing).await.0),
            ("pod", writer.steer(&self.pod.0, &self.pod.1, "gpu-a30").await.0),
            ("Ready", check(&self.waiting, CheckState::Ready).await),
            ("Retry", check(&self.passed, CheckState::Retry).await),
        ]
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_a_former_leader_still_sends_is_refused_though_nothing_else_has_changed() -> Result<()> {
    // Slices take longer to be made than this test lasts.
    let node = GpuNode::a30("gpu-a30").slow(60_000, 0);
    let world = World::with(vec![node, GpuNode::a100("gpu-a100")]).await?;
    // One that has passed, with a pod more than it has claims for: gated, and with nowhere to go.
    world.submit(&job("default", "passed", 1, &[("1g.10gb", 1)], "1000")).await?;
    until_in_use(&world, "gpu-a100", 1).await?;
    let passed = world.workload_of("default", "passed").await?.context("a Workload")?;
    let surplus: Pod = serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "surplus", "namespace": "default", "labels": {
            names::WORKLOAD_LABEL: passed.uid().context("uid")?, names::POD_SET_LABEL: "main"}},
        "spec": {"containers": [{"name": "a", "image": "x", "resources": {"limits": {"nvidia.com/mig-1g.10gb": 1}}}]},
    }))?;
    world.api::<Pod>("default").create(&PostParams::default(), &surplus).await?;
    // One that waits for its slices.
    world.submit(&job("default", "waiting", 1, &[("1g.6gb", 1)], "1")).await?;
    world
        .until("it has a claim", || async { Ok(!world.mig_node("gpu-a30").await?.spec.claims.is_empty()) })
        .await?;
    // The Workload changes once more when it has waited for a while.
    world
        .until("it is told what it waits for", || async {
            let told = world.check("default", "waiting").await?;
            Ok(told.is_some_and(|(_, message)| message.starts_with("Slices reserved on gpu-a30")))
        })
        .await?;

    let controller = process(&world, FIRST)?;
    let before = terms(&world).await?;
    controller.signal(Signal::STOP);
    let decided = Decided::now(&world).await?;
    // Killed and started again under the same name, it takes up its own lease at once, and must not trust its former self.
    controller.restart().await?;
    world
        .until("the new leader has taken over", || async {
            let port = controller.spec().port.context("port")?;
            let metrics = get(port, "/metrics").await?;
            let plans = metrics.lines().find_map(|line| line.strip_prefix("slicegate_plan_seconds_count "));
            let at_work = plans.is_some_and(|plans| plans != "0");
            Ok(at_work && terms(&world).await?.iter().zip(&before).all(|(now, before)| now != before))
        })
        .await?;
    let node = world.mig_node("gpu-a30").await?;
    assert_eq!(node.metadata.generation, Some(decided.node.1.generation), "the spec is as it was");

    let kubeconfig = world.operator.controller_kubeconfig(&world.rig).await?;
    let writer = Writer::new(world.rig.client_of(&kubeconfig).await?);
    let refused = ["spec", "pod", "Ready", "Retry"].map(|what| (what, Outcome::Conflict));
    assert_eq!(Box::pin(decided.send(&writer)).await, refused);
    let (state, _) = world.check("default", "waiting").await?.context("a check")?;
    assert_eq!(state, kueue::CheckState::Pending);
    let pod = world.api::<Pod>("default").get("surplus").await?;
    assert!(pod.spec.is_some_and(|spec| spec.scheduling_gates.is_some_and(|gates| !gates.is_empty())));
    assert_eq!(world.mig_node("gpu-a30").await?.spec, node.spec);
    // Had nobody taken over, the same would have been done: it is the takeover that makes it void.
    controller.signal(Signal::STOP);
    let decided = Decided::now(&world).await?;
    let done = ["spec", "pod", "Ready", "Retry"].map(|what| (what, Outcome::Written));
    assert_eq!(Box::pin(decided.send(&writer)).await, done);
    assert_eq!(
        writer
            .set_active(&decided.active, slicegate::api::convert::time(slicegate::api::convert::now()))
            .await
            .0,
        Outcome::Written
    );
    assert_eq!(
        writer
            .set_active(&decided.active, slicegate::api::convert::time(slicegate::api::convert::now()))
            .await
            .0,
        Outcome::Conflict
    );
    controller.signal(Signal::CONT);
    world.rig.down().await
}

/// A way to the API server that can be cut.
struct Proxy {
    kubeconfig: PathBuf,
    task: tokio::task::JoinHandle<()>,
}

impl Proxy {
    async fn start(world: &World) -> Result<Self> {
        let server = Arc::new(world.rig.server().trim_start_matches("https://").to_owned());
        let listener = TcpListener::bind("127.0.0.1:0").await?;
        let here = format!("https://127.0.0.1:{}", listener.local_addr()?.port());
        let direct = world.operator.controller_kubeconfig(&world.rig).await?;
        let text = std::fs::read_to_string(direct)?.replace(world.rig.server(), &here);
        let kubeconfig = world.rig.write_file("kubeconfigs/through-a-proxy", &text)?;
        let task = tokio::spawn(async move {
            // Connections end with this task.
            let mut connections = JoinSet::new();
            while let Ok((mut near, _)) = listener.accept().await {
                let server = server.clone();
                connections.spawn(async move {
                    if let Ok(mut far) = TcpStream::connect(&*server).await {
                        let _ = tokio::io::copy_bidirectional(&mut near, &mut far).await;
                    }
                });
            }
        });
        Ok(Self { kubeconfig, task })
    }

    fn cut(self) {
        self.task.abort();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_alone_cannot_reach_the_api_server_steps_down_before_the_other_takes_over() -> Result<()>
{
    let world = World::with_args(vec![GpuNode::a30("gpu-a30")], &SHORT).await?;
    let proxy = Proxy::start(&world).await?;
    world.operator.start_replica(&world.rig, SECOND, &proxy.kubeconfig).await?;
    process(&world, FIRST)?.terminate().await?;
    until_leads(&world, SECOND).await?;
    process(&world, FIRST)?.restart().await?;
    world.until("the first stands by", || async { Ok(role(&world, FIRST).await? == "ok (standby)") }).await?;
    world.submit(&job("default", "before", 1, &[("1g.6gb", 1)], "0.2")).await?;
    until_done(&world, "before").await?;

    proxy.cut();
    let cut_off = process(&world, SECOND)?;
    cut_off.wait(Duration::from_secs(20)).await?;
    assert_eq!(holder(&world).await?, SECOND, "nobody leads yet");
    assert_eq!(cut_off.exit_status().and_then(|status| status.code()), Some(1));
    let log = cut_off.log_tail(20);
    assert!(log.contains("the lease was not renewed within the renew deadline"), "{log}");
    until_leads(&world, FIRST).await?;
    world.submit(&job("default", "after", 1, &[("1g.6gb", 1)], "0.2")).await?;
    until_done(&world, "after").await?;
    world.until_released().await?;
    world.rig.down().await
}
