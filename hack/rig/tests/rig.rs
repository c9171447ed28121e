//! The whole rig at work. It starts a cluster, for which the first build of the programs takes minutes, so it runs on
//! request: `cargo test -p slicegate-rig -- --ignored`.

use std::collections::BTreeMap;
use std::future::Future;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use k8s_openapi::api::authentication::v1::SelfSubjectReview;
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, Patch, PatchParams, PostParams};
use serde_json::json;
use slicegate_rig::{Health, NodeSpec, Options, ProcessId, ProcessSpec, Rig, free_port};

const QUEUE: &str = "
apiVersion: kueue.x-k8s.io/v1beta2
kind: ResourceFlavor
metadata: {name: default}
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: ClusterQueue
metadata: {name: everything}
spec:
  namespaceSelector: {}
  resourceGroups:
  - coveredResources: [cpu]
    flavors: [{name: default, resources: [{name: cpu, nominalQuota: 4}]}]
---
apiVersion: kueue.x-k8s.io/v1beta2
kind: LocalQueue
metadata: {name: queue, namespace: team-a}
spec: {clusterQueue: everything}
---
apiVersion: v1
kind: Namespace
metadata: {name: team-a}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: agent, namespace: team-a}
";

const POLICY: &str = "
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicy
metadata: {name: gate}
spec:
  matchConstraints:
    resourceRules: [{apiGroups: [''], apiVersions: [v1], operations: [CREATE], resources: [pods]}]
  failurePolicy: Fail
  reinvocationPolicy: Never
  mutations:
  - patchType: ApplyConfiguration
    applyConfiguration: {expression: 'Object{metadata: Object.metadata{labels: {\"seen\": \"yes\"}}}'}
---
apiVersion: admissionregistration.k8s.io/v1
kind: MutatingAdmissionPolicyBinding
metadata: {name: gate}
spec: {policyName: gate}
";

fn job(name: &str, annotations: &serde_json::Value) -> String {
    json!({
        "apiVersion": "batch/v1",
        "kind": "Job",
        "metadata": {"name": name, "namespace": "team-a", "labels": {"kueue.x-k8s.io/queue-name": "queue"}},
        "spec": {"backoffLimit": 0, "template": {
            "metadata": {"annotations": annotations},
            "spec": {"restartPolicy": "Never", "containers": [
                {"name": "main", "image": "never-pulled", "resources": {"requests": {"cpu": "1"}}},
            ]},
        }},
    })
    .to_string()
}

async fn eventually<F: Future<Output = Result<bool>>>(
    what: &str,
    mut check: impl FnMut() -> F,
) -> Result<()> {
    let deadline = Instant::now() + Duration::from_mins(1);
    while !check().await? {
        anyhow::ensure!(Instant::now() < deadline, "still waiting: {what}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a cluster"]
async fn the_rig_runs_workloads() -> Result<()> {
    let rig = Rig::up(Options::temporary()?).await?;
    let mut processes: Vec<ProcessId> =
        ["etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler", "kueue", "kwok"]
            .into_iter()
            .map(|name| rig.process(name).map(|process| process.id()).context(name))
            .collect::<Result<_>>()?;

    nodes_keep_added_capacity(&rig).await?;
    rig.apply_yaml(QUEUE).await?;
    rig.apply_yaml(POLICY).await?;
    policies_change_pods(&rig).await?;
    jobs_are_admitted_and_end(&rig).await?;
    tokens_name_their_node(&rig).await?;
    processes_crash_and_come_back(&rig, &mut processes).await?;

    rig.restart("kueue").await?;
    processes.extend(rig.process("kueue").map(|process| process.id()));
    rig.apply_yaml(&job("after-restart", &json!({"slicegate.dev/run-seconds": "0.1"}))).await?;
    completed(&rig, "after-restart").await?;

    let dir = rig.dir().to_owned();
    rig.down().await?;
    assert!(processes.iter().all(|process| !process.is_running()));
    assert!(!dir.exists());
    Ok(())
}

async fn nodes_keep_added_capacity(rig: &Rig) -> Result<()> {
    rig.add_nodes(&[NodeSpec::new("node-a").label("zone", "east"), NodeSpec::new("node-b")]).await?;
    let nodes: Api<Node> = Api::all(rig.client().await?);
    let more = json!({"status": {
        "capacity": {"nvidia.com/mig-1g.10gb": "7"},
        "allocatable": {"nvidia.com/mig-1g.10gb": "3"},
    }});
    nodes.patch_status("node-a", &PatchParams::default(), &Patch::Merge(&more)).await?;
    let before = heartbeat(&nodes.get("node-a").await?);
    eventually("a heartbeat", async || Ok(heartbeat(&nodes.get("node-a").await?) != before)).await?;
    let status = nodes.get("node-a").await?.status.context("a status")?;
    let count = |of: Option<BTreeMap<String, _>>| {
        of.and_then(|map| map.get("nvidia.com/mig-1g.10gb").cloned())
            .map(|quantity: k8s_openapi::apimachinery::pkg::api::resource::Quantity| quantity.0)
    };
    assert_eq!(count(status.capacity).as_deref(), Some("7"));
    assert_eq!(count(status.allocatable).as_deref(), Some("3"));
    Ok(())
}

fn heartbeat(node: &Node) -> Option<String> {
    let conditions = node.status.as_ref()?.conditions.as_ref()?;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    ready.last_heartbeat_time.as_ref().map(|time| format!("{time:?}"))
}

/// A policy is in force a moment after it was written.
async fn policies_change_pods(rig: &Rig) -> Result<()> {
    let pods: Api<Pod> = Api::namespaced(rig.client().await?, "team-a");
    let pod: Pod = serde_json::from_value(json!({
        "metadata": {"name": "try"},
        "spec": {"containers": [{"name": "main", "image": "never-pulled"}]},
    }))?;
    let params = PostParams { dry_run: true, ..PostParams::default() };
    eventually("the policy", async || {
        Ok(pods
            .create(&params, &pod)
            .await?
            .metadata
            .labels
            .is_some_and(|labels| labels.contains_key("seen")))
    })
    .await
}

async fn jobs_are_admitted_and_end(rig: &Rig) -> Result<()> {
    let client = rig.client().await?;
    rig.apply_yaml(&job("default-time", &json!({}))).await?;
    rig.apply_yaml(&job(
        "fails",
        &json!({"slicegate.dev/run-seconds": "0.1", "slicegate.dev/exit-code": "3"}),
    ))
    .await?;
    completed(rig, "default-time").await?;
    let jobs: Api<Job> = Api::namespaced(client.clone(), "team-a");
    eventually("the failed job", async || {
        Ok(jobs.get("fails").await?.status.and_then(|status| status.failed) == Some(1))
    })
    .await?;
    let pods: Api<Pod> = Api::namespaced(client, "team-a");
    let all = pods.list(&ListParams::default().labels("seen=yes")).await?;
    assert_eq!(all.items.len(), 2, "the policy has changed both pods");
    Ok(())
}

async fn completed(rig: &Rig, name: &str) -> Result<()> {
    let jobs: Api<Job> = Api::namespaced(rig.client().await?, "team-a");
    eventually(name, async || Ok(jobs.get(name).await?.status.and_then(|status| status.succeeded) == Some(1)))
        .await
}

async fn tokens_name_their_node(rig: &Rig) -> Result<()> {
    let token = rig.token("team-a", "agent", Some("node-a")).await?;
    let kubeconfig = rig.kubeconfig_for("agent-node-a", &token)?;
    let reviews: Api<SelfSubjectReview> = Api::all(rig.client_of(&kubeconfig).await?);
    let review = reviews.create(&PostParams::default(), &SelfSubjectReview::default()).await?;
    let extra = review.status.and_then(|it| it.user_info).and_then(|it| it.extra).context("extra claims")?;
    assert_eq!(extra["authentication.kubernetes.io/node-name"], ["node-a"]);
    Ok(())
}

async fn processes_crash_and_come_back(rig: &Rig, processes: &mut Vec<ProcessId>) -> Result<()> {
    let port = free_port()?;
    let serve = format!(
        "import http.server; http.server.HTTPServer(('127.0.0.1', {port}), http.server.SimpleHTTPRequestHandler).serve_forever()"
    );
    let spec = ProcessSpec::new("server", "python3").args(["-c", &serve]).ready_when(Health::Listens(port));
    let server = rig.spawn(spec)?;
    rig.until_ready(&server).await?;
    let first = server.id();
    server.kill().await?;
    assert!(!server.is_running());
    rig.restart("server").await?;
    assert_ne!(server.id(), first);
    server.terminate().await?;
    server.restart().await?;
    processes.push(server.id());

    let broken = rig.spawn(
        ProcessSpec::new("broken", "sh")
            .args(["-c", "echo no luck; exit 3"])
            .ready_when(Health::Listens(port + 1)),
    )?;
    let error = rig.until_ready(&broken).await.expect_err("it ends").to_string();
    assert!(error.contains("broken ended before it was ready") && error.contains("no luck"), "{error}");
    Ok(())
}

#[tokio::test(flavor = "multi_thread")]
#[ignore = "starts a cluster"]
async fn a_part_that_cannot_start_is_named() -> Result<()> {
    let options = Options::temporary()?.extra_arg("kube-scheduler", "--no-such-flag");
    let dir = options.dir.clone();
    let error = format!("{:#}", Rig::up(options).await.expect_err("it does not start"));
    assert!(error.contains("kube-scheduler ended before it was ready"), "{error}");
    assert!(error.contains("logs/kube-scheduler.log") && error.contains("no-such-flag"), "{error}");
    assert!(dir.join("logs/kube-scheduler.log").exists(), "the log that the error names is kept");
    std::fs::remove_dir_all(dir)?;
    Ok(())
}
