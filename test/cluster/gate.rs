//! The gate where the API server knows no MutatingAdmissionPolicy: the controller's webhook. And what is said where there is
//! no gate at all.

use std::collections::BTreeSet;

use anyhow::{Context, Result, ensure};
use k8s_openapi::api::core::v1::{Pod, Secret};
use kube::api::{DeleteParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use slicegate::api::{kueue, names};
use slicegate::controller::gate::pod::gate;
use slicegate_rig::gate::Webhook;
use slicegate_rig::operator::{GpuNode, Operator};
use slicegate_rig::{Options, Rig};

use crate::support::{PATIENCE, World, job};

/// The oldest that our API server can behave as. It serves no MutatingAdmissionPolicy.
const OLD: &str = "1.33";

/// A cluster as [`World::with`], of an older version and with the webhook.
async fn with_webhook(nodes: Vec<GpuNode>, args: &[&str]) -> Result<World> {
    let webhook = Webhook::new()?;
    let mut all = webhook.args();
    all.extend(args.iter().map(|arg| (*arg).to_owned()));
    let rig = Rig::up(Options::temporary()?.emulating(OLD)).await?;
    rig.apply_objects(webhook.objects(&rig).await?).await?;
    let operator = Operator::find()?.controller_args(all);
    operator.install_parts(&rig, &nodes).await?;
    let client = rig.client().await?;
    let world = World { rig, operator, client, nodes };
    world.until("the AdmissionCheck is Active", || world.check_condition("slicegate", "True")).await?;
    Ok(world)
}

fn pod(namespace: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": name, "namespace": namespace},
        "spec": spec,
    })
}

fn asking() -> Value {
    json!({"name": "a", "image": "x", "resources": {"limits": {"nvidia.com/mig-1g.6gb": 1}}})
}

fn gates(pod: &Pod) -> Vec<&str> {
    let gates = pod.spec.iter().flat_map(|spec| spec.scheduling_gates.iter().flatten());
    gates.map(|gate| gate.name.as_str()).collect()
}

impl World {
    async fn create(&self, pod: &Value, dry_run: bool) -> kube::Result<Pod> {
        let object: Pod = serde_json::from_value(pod.clone()).map_err(kube::Error::SerdeError)?;
        let api = self.api::<Pod>(&object.namespace().unwrap_or_default());
        api.create(&PostParams { dry_run, ..PostParams::default() }, &object).await
    }

    /// Why a pod that asks for slices cannot be created, if so.
    async fn refusal(&self) -> Option<String> {
        let spec = json!({"containers": [asking()]});
        self.create(&pod("default", "probe", &spec), true).await.err().map(|error| error.to_string())
    }

    /// Reason and message of our AdmissionCheck's condition Active, if it is as expected.
    async fn active(&self, status: &str) -> Result<Option<(String, String)>> {
        let check: kueue::AdmissionCheck = Api::all(self.client.clone()).get("slicegate").await?;
        let conditions = check.status.map(|s| s.conditions).unwrap_or_default();
        let found = conditions.into_iter().find(|c| c.type_ == "Active" && c.status == status);
        Ok(found.map(|condition| (condition.reason, condition.message)))
    }

    /// Waits until it is not Active for want of a gate, and says so.
    async fn until_gate_missing(&self, advice: &str) -> Result<()> {
        self.until(&format!("the check is not Active: {advice}"), || async {
            let said = self.active("False").await?;
            Ok(said.is_some_and(|(reason, message)| reason == "GateMissing" && message.contains(advice)))
        })
        .await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn on_an_older_server_a_job_a_deployment_and_a_bare_pod_run_behind_the_webhook() -> Result<()> {
    let world = with_webhook(vec![GpuNode::a30("gpu-a30")], &[]).await?;
    let queue = json!({names::QUEUE_LABEL: "mig"});
    let mut bare = pod("default", "bare", &json!({"containers": [asking()]}));
    bare["metadata"]["labels"] = queue.clone();
    let deployment = json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": "served", "namespace": "default", "labels": queue},
        "spec": {
            "replicas": 2,
            "selector": {"matchLabels": {"app": "served"}},
            "template": {"metadata": {"labels": {"app": "served"}}, "spec": {"containers": [asking()]}},
        },
    });
    world.submit(&job("default", "batch", 2, &[("1g.6gb", 1)], "60")).await?;
    world.rig.apply_objects(vec![bare, deployment]).await?;
    let counted = json!({
        "apiVersion": "v1", "kind": "Namespace",
        "metadata": {"name": "counted", "labels": {names::GPU_MEMORY_QUOTA_LABEL: "enabled"}},
    });
    world.rig.apply_objects(vec![counted]).await?;
    let asks = pod("counted", "counted", &json!({"containers": [asking()]}));
    world
        .until("the webhook gives pods their GPU memory, and the policy lets that pass", || async {
            let made = world.create(&asks, true).await.ok().and_then(|pod| pod.spec);
            let limits = made.and_then(|spec| spec.containers.into_iter().next()?.resources?.limits);
            Ok(limits.is_some_and(|limits| limits.get(names::GPU_MEMORY).is_some_and(|gib| gib.0 == "6")))
        })
        .await?;
    world
        .until("five pods run, each on the node that the controller chose", || async {
            let pods = world.pods("default").await?;
            let runs = |pod: &&Pod| {
                let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
                let selector = pod.spec.as_ref().and_then(|spec| spec.node_selector.as_ref());
                let steered = selector.and_then(|selector| selector.get(names::HOSTNAME_LABEL));
                phase == Some("Running") && steered.is_some_and(|host| host == "gpu-a30")
            };
            Ok(pods.iter().filter(runs).count() == 5)
        })
        .await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_webhooks_certificates_are_replaced_no_pod_is_refused_and_none_is_let_through() -> Result<()>
{
    let world = with_webhook(vec![], &["--webhook-cert-seconds=12", "--webhook-trust-seconds=2"]).await?;
    let pods: Api<Pod> = world.api("default");
    let secrets: Api<Secret> = world.api("slicegate-system");
    let object: Pod = serde_json::from_value(pod("default", "asks", &json!({"containers": [asking()]})))?;
    let mut certificates = BTreeSet::new();
    let replaced = async {
        // The first, the second and the third, which the API server has all been shown.
        while certificates.len() < 3 {
            let created = pods.create(&PostParams::default(), &object).await.context("a pod was refused")?;
            ensure!(gates(&created) == [names::GATE], "let through with gates {:?}", gates(&created));
            let at_once = DeleteParams { grace_period_seconds: Some(0), ..DeleteParams::default() };
            pods.delete("asks", &at_once).await?;
            let data = secrets.get("slicegate-gate").await?.data.context("an empty Secret")?;
            certificates.insert(data["tls.crt"].0.clone());
        }
        anyhow::Ok(())
    };
    tokio::time::timeout(PATIENCE, replaced).await.context("the certificates stayed as they were")??;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn without_a_gate_the_check_is_not_active_and_says_what_to_install_until_that_is_done() -> Result<()> {
    let webhook = Webhook::new()?;
    let rig = Rig::up(Options::temporary()?.emulating(OLD)).await?;
    let (configuration, rest): (Vec<_>, Vec<_>) = webhook
        .objects(&rig)
        .await?
        .into_iter()
        .partition(|object| object["kind"] == "MutatingWebhookConfiguration");
    // What such a server takes of config/default.
    rig.apply_objects(rest).await?;
    let nodes = vec![GpuNode::a30("gpu-a30")];
    let plain = Operator::find()?;
    plain.install_parts(&rig, &nodes).await?;
    let client = rig.client().await?;
    let operator = plain.controller_args(webhook.args());
    let world = World { rig, operator, client, nodes };
    world.until_gate_missing("Apply config/webhook instead of config/default.").await?;
    world
        .until("pods that ask for slices are refused", || async {
            Ok(world.refusal().await.is_some_and(|why| why.contains("Slicegate's gate is not installed")))
        })
        .await?;
    world.submit(&job("default", "waits", 1, &[("1g.6gb", 1)], "0")).await?;

    // Half of it: the controller is the webhook, and nobody calls it.
    world.rig.process("controller").context("no controller")?.terminate().await?;
    world.operator.start_controller(&world.rig).await?;
    world.until_gate_missing("Apply config/webhook again.").await?;

    world.rig.apply_objects(configuration).await?;
    world.until("the check is Active", || world.check_condition("slicegate", "True")).await?;
    world.until("the Job is done", || world.job_done("default", "waits")).await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_webhook_is_down_pods_that_ask_for_slices_are_refused_and_others_are_not() -> Result<()> {
    let world = with_webhook(vec![], &[]).await?;
    world
        .rig
        .apply_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: free, labels: {slicegate.dev/managed: 'false'}}}")
        .await?;
    assert_eq!(world.refusal().await, None);
    let controller = world.rig.process("controller").context("no controller")?;
    controller.kill().await?;
    let why = world.refusal().await.context("it was let through")?;
    assert!(why.contains("failed calling webhook \"gate.slicegate.dev\""), "{why}");
    assert!(why.contains("connection refused"), "{why}");

    let plain = json!({"containers": [{"name": "a", "image": "x"}]});
    world.create(&pod("default", "plain", &plain), false).await?;
    let free = json!({"containers": [asking()]});
    world
        .until("the namespace is known to be free", || async {
            Ok(gates(&world.create(&pod("free", "free", &free), true).await?).is_empty())
        })
        .await?;

    world.rig.restart("controller").await?;
    assert_eq!(world.refusal().await, None);
    world.rig.down().await
}

/// Pods of every kind that the gate tells apart, with their namespaces.
fn table() -> Vec<(&'static str, Value)> {
    let plain = json!({"name": "b", "image": "x"});
    let of = |resource: &str, count: u32| json!({"name": "a", "image": "x", "resources": {"limits": {resource: count}}});
    let spec =
        |containers: &[&Value]| json!({"containers": containers, "automountServiceAccountToken": false});
    let with = |key: &str, value: Value| {
        let mut spec = spec(&[&asking()]);
        spec[key] = value;
        spec
    };
    let mut both = asking();
    both["resources"]["requests"] = json!({"cpu": "1", "nvidia.com/mig-1g.6gb": 1});
    let mut requests = asking();
    requests["resources"] = json!({"requests": {"nvidia.com/mig-1g.6gb": 1}});
    let init = |container: Value| {
        let mut spec = spec(&[&plain]);
        spec["initContainers"] = json!([container]);
        spec
    };
    let mut sidecar = asking();
    sidecar["restartPolicy"] = json!("Always");
    let (mine, ours) = (json!({"name": "example.com/mine"}), json!({"name": names::GATE}));
    let mut by_hand = of(names::GPU_MEMORY, 3);
    by_hand["name"] = json!("by-hand");
    let mut sidecar_by_hand = sidecar.clone();
    sidecar_by_hand["resources"]["limits"][names::GPU_MEMORY] = json!(1);
    vec![
        ("default", spec(&[&asking()])),
        ("default", spec(&[&plain])),
        ("default", spec(&[&plain, &asking()])),
        ("default", spec(&[&both])),
        ("default", spec(&[&requests])),
        ("default", spec(&[&of("nvidia.com/mig-1g.10gb.me", 2)])),
        ("default", spec(&[&of("nvidia.com/mig-1g.6gb", 0)])),
        ("default", spec(&[&of("nvidia.com/gpu", 1)])),
        ("default", spec(&[&of("nvidia.com/mig", 1)])),
        ("default", init(asking())),
        ("default", init(sidecar)),
        ("default", init(plain.clone())),
        ("default", with("schedulingGates", json!([]))),
        ("default", with("schedulingGates", json!([mine]))),
        ("default", with("schedulingGates", json!([ours]))),
        ("default", with("schedulingGates", json!([ours, mine]))),
        ("default", with("nodeName", json!("gpu-a30"))),
        ("default", with("nodeName", json!(""))),
        ("kube-system", spec(&[&asking()])),
        ("free", spec(&[&asking()])),
        ("counted", spec(&[&both, &plain])),
        ("counted", spec(&[&of("nvidia.com/mig-1g.10gb.me", 2), &by_hand])),
        ("counted", spec(&[&of("nvidia.com/mig-big", 1)])),
        ("counted", init(sidecar_by_hand)),
        ("instaslice", spec(&[&both, &by_hand])),
    ]
}

/// What becomes of the pods of the table, or why they are refused.
async fn created(world: &World) -> Vec<Result<Value, String>> {
    let mut all = Vec::new();
    for (namespace, spec) in table() {
        let created = world.create(&pod(namespace, "p", &spec), true).await;
        all.push(match created {
            Ok(pod) => serde_json::to_value(pod.spec).map_err(|error| error.to_string()),
            Err(error) => Err(error.to_string()),
        });
    }
    all
}

#[tokio::test(flavor = "multi_thread")]
async fn the_webhook_makes_of_every_pod_what_the_policy_makes_of_it() -> Result<()> {
    let webhook = Webhook::new()?;
    let rig = Rig::up(Options::temporary()?).await?;
    rig.apply_kustomize("config/emulated").await?;
    let (configuration, rest): (Vec<_>, Vec<_>) = webhook
        .objects(&rig)
        .await?
        .into_iter()
        .partition(|object| object["kind"] == "MutatingWebhookConfiguration");
    rig.apply_objects(rest).await?;
    for (name, key, value) in [
        ("free", "slicegate.dev/managed", "false"),
        ("counted", names::GPU_MEMORY_QUOTA_LABEL, "enabled"),
        ("instaslice", names::INSTASLICE_LABEL, "true"),
    ] {
        let metadata = json!({"name": name, "labels": {key: value}});
        rig.apply_objects(vec![json!({"apiVersion": "v1", "kind": "Namespace", "metadata": metadata})])
            .await?;
    }
    let operator = Operator::find()?.controller_args(webhook.args());
    operator.install_parts(&rig, &[]).await?;
    let client = rig.client().await?;
    let world = World { rig, operator, client, nodes: Vec::new() };
    world.until("the policy is in force", || async { Ok(world.refusal().await.is_none()) }).await?;
    world.until("the check is Active by the policy", || world.check_condition("slicegate", "True")).await?;
    let by_policy = created(&world).await;

    let bindings = [names::GATE_NAME, names::MEMORY_WEBHOOKS[0], names::MEMORY_WEBHOOKS[1]];
    world.rig.kubectl(["delete", "mutatingadmissionpolicybinding"].into_iter().chain(bindings)).await?;
    world.rig.kubectl(["delete", "mutatingadmissionpolicy", bindings[0], bindings[1]]).await?;
    world.until("the policy is gone", || async { Ok(world.refusal().await.is_some()) }).await?;
    world.until_gate_missing("Apply config/webhook again.").await?;
    world.rig.apply_objects(configuration).await?;
    world.until("the webhook is in force", || async { Ok(world.refusal().await.is_none()) }).await?;
    world.until("the check is Active by the webhook", || world.check_condition("slicegate", "True")).await?;
    let by_webhook = created(&world).await;

    let limits =
        |made: &Result<Value, String>| made.as_ref().unwrap()["containers"][0]["resources"]["limits"].clone();
    let [of_counted, .., of_instaslice] = by_webhook.last_chunk::<5>().unwrap();
    assert_eq!(limits(of_counted)[names::GPU_MEMORY], "6");
    assert_eq!(limits(of_counted)[names::INSTASLICE_MEMORY], Value::Null);
    assert_eq!(limits(of_instaslice)[names::INSTASLICE_MEMORY], "6Gi");
    let mut gated = 0;
    for (((namespace, spec), by_policy), by_webhook) in table().into_iter().zip(by_policy).zip(by_webhook) {
        assert_eq!(by_webhook, by_policy, "{namespace}: {spec}");
        // The function itself, without the conditions under which the API server calls it.
        let (Ok(made), "default") = (by_policy, namespace) else { continue };
        let mut wanted = spec["schedulingGates"].as_array().cloned().unwrap_or_default();
        if gate(&pod(namespace, "p", &spec)).is_some() {
            gated += 1;
            wanted.push(json!({"name": names::GATE}));
        }
        assert_eq!(made["schedulingGates"].as_array().cloned().unwrap_or_default(), wanted, "{spec}");
    }
    assert!(gated >= 9, "only {gated}");
    world.rig.down().await
}
