//! Who may do what: the gate, the agents' confinement, least privilege. Against the real admission chain.

use anyhow::Result;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use slicegate::api::{MIGNode, MIGNodeSpec};
use slicegate_rig::operator::GpuNode;

use crate::support::World;

async fn refused<T>(what: &str, attempt: impl Future<Output = kube::Result<T>>, because: &str) {
    match attempt.await {
        Ok(_) => panic!("{what} was allowed"),
        Err(error) => assert!(error.to_string().contains(because), "{what}: {error}"),
    }
}

/// Waits until an attempt that is never carried out would be refused: the API server takes up each policy in its own time.
async fn until_refused<T, F>(world: &World, what: &str, dry_run: impl Fn() -> F) -> Result<()>
where
    F: Future<Output = kube::Result<T>>,
{
    world.until(&format!("{what} is refused"), || async { Ok(dry_run().await.is_err()) }).await
}

fn pod(name: &str, spec: &Value) -> Result<Pod> {
    Ok(serde_json::from_value(
        json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name}, "spec": spec}),
    )?)
}

fn gates(pod: &Pod) -> Vec<String> {
    pod.spec.iter().flat_map(|s| s.scheduling_gates.iter().flatten()).map(|g| g.name.clone()).collect()
}

#[expect(clippy::too_many_lines, reason = "a list of what is refused, in one place")]
#[tokio::test(flavor = "multi_thread")]
async fn an_agent_writes_its_own_nodes_objects_and_nothing_else() -> Result<()> {
    let world = World::with(vec![GpuNode::a30("gpu-a"), GpuNode::a30("gpu-b")]).await?;
    let agent: Client =
        world.rig.client_of(&world.rig.dir().join("kubeconfigs/slicegate-agent-gpu-a")).await?;
    let mig_nodes: Api<MIGNode> = Api::all(agent.clone());
    let nodes: Api<Node> = Api::all(agent.clone());
    let (merge, apply) = (PatchParams::default(), PatchParams::apply("test").force());
    let status = |name: &str| json!({"apiVersion": "slicegate.dev/v1alpha1", "kind": "MIGNode", "metadata": {"name": name}, "status": {"bootID": "x"}});
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    let boot = Patch::Merge(json!({"status": {"bootID": "x"}}));
    until_refused(&world, "another's status", || mig_nodes.patch_status("gpu-b", &dry_run, &boot)).await?;
    let slices = Patch::Merge(json!({"status": {"capacity": {"nvidia.com/mig-1g.6gb": "5"}}}));
    until_refused(&world, "another's Node", || nodes.patch_status("gpu-b", &dry_run, &slices)).await?;
    let other = "may not write mignodes gpu-b";
    refused(
        "applying another's status",
        mig_nodes.patch_status("gpu-b", &apply, &Patch::Apply(status("gpu-b"))),
        other,
    )
    .await;
    refused(
        "patching another's status",
        mig_nodes.patch_status("gpu-b", &merge, &Patch::Merge(json!({"status": {"bootID": "x"}}))),
        other,
    )
    .await;
    refused(
        "making another's MIGNode",
        mig_nodes.create(&PostParams::default(), &MIGNode::new("gpu-c", MIGNodeSpec::default())),
        "may not write mignodes gpu-c",
    )
    .await;
    refused(
        "patching its spec",
        mig_nodes.patch("gpu-a", &merge, &Patch::Merge(json!({"spec": {"holds": []}}))),
        "forbidden",
    )
    .await;
    refused("deleting its MIGNode", mig_nodes.delete("gpu-a", &DeleteParams::default()), "forbidden").await;
    refused("deleting another's MIGNode", mig_nodes.delete("gpu-b", &DeleteParams::default()), "forbidden")
        .await;

    let mut finalized = MIGNode::new("gpu-a", MIGNodeSpec::default());
    finalized.metadata.finalizers = Some(vec!["example.com/mine".to_owned()]);
    refused(
        "a finalizer on its MIGNode",
        mig_nodes.create(&PostParams::default(), &finalized),
        "without owner references and finalizers",
    )
    .await;

    let resources = |key: &str| json!({"status": {"capacity": {key: "5"}, "allocatable": {key: "5"}}});
    let mine = "nvidia.com/mig-1g.6gb";
    refused(
        "another Node's resources",
        nodes.patch_status("gpu-b", &merge, &Patch::Merge(resources(mine))),
        "may not write nodes gpu-b",
    )
    .await;
    refused(
        "foreign resources",
        nodes.patch_status("gpu-a", &merge, &Patch::Merge(resources("cpu"))),
        "only the nvidia.com/mig-* resources",
    )
    .await;
    refused(
        "new foreign resources",
        nodes.patch_status("gpu-a", &merge, &Patch::Merge(resources("example.com/gold"))),
        "only the nvidia.com/mig-* resources",
    )
    .await;
    let memory = Patch::Merge(resources("slicegate.dev/gpu-memory"));
    nodes.patch_status("gpu-a", &dry_run, &memory).await?;
    refused(
        "another Node's memory",
        nodes.patch_status("gpu-b", &merge, &memory),
        "may not write nodes gpu-b",
    )
    .await;
    refused(
        "removal of foreign resources",
        nodes.patch_status(
            "gpu-a",
            &merge,
            &Patch::Merge(json!({"status": {"allocatable": {"memory": null}}})),
        ),
        "only the nvidia.com/mig-* resources",
    )
    .await;
    refused(
        "labels of its Node",
        nodes.patch_status("gpu-a", &merge, &Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}}))),
        "labels, annotations",
    )
    .await;
    refused(
        "conditions of its Node",
        nodes.patch_status("gpu-a", &merge, &Patch::Merge(json!({"status": {"conditions": []}}))),
        "may not change conditions",
    )
    .await;
    refused(
        "its Node's spec",
        nodes.patch("gpu-a", &merge, &Patch::Merge(json!({"spec": {"unschedulable": true}}))),
        "forbidden",
    )
    .await;
    refused(
        "other objects",
        Api::<Pod>::default_namespaced(agent).create(
            &PostParams::default(),
            &pod("p", &json!({"containers": [{"name": "a", "image": "x"}]}))?,
        ),
        "forbidden",
    )
    .await;

    // A token of the same ServiceAccount that names no node.
    let loose = world
        .rig
        .kubeconfig_for("loose", &world.rig.token("slicegate-system", "slicegate-agent", None).await?)?;
    let loose: Api<MIGNode> = Api::all(world.rig.client_of(&loose).await?);
    refused(
        "a token without a node",
        loose.patch_status("gpu-a", &apply, &Patch::Apply(status("gpu-a"))),
        "token names no node",
    )
    .await;

    // What it is there for; the agent itself puts both right again.
    nodes.patch_status("gpu-a", &merge, &Patch::Merge(resources(mine))).await?;
    mig_nodes.patch_status("gpu-a", &apply, &Patch::Apply(status("gpu-a"))).await?;
    world.rig.down().await
}

#[tokio::test(flavor = "multi_thread")]
async fn every_pod_that_asks_for_slices_is_gated_and_only_the_controller_lets_it_go() -> Result<()> {
    let world = World::with(vec![]).await?;
    world
        .rig
        .apply_yaml("{apiVersion: v1, kind: Namespace, metadata: {name: free, labels: {slicegate.dev/managed: 'false'}}}")
        .await?;
    let ours = vec!["slicegate.dev/claim".to_owned()];
    let pods: Api<Pod> = world.api("default");
    let with = |container: Value| json!({"containers": [container]});
    let asks = json!({"limits": {"nvidia.com/mig-1g.6gb": 1}});
    let plain = json!({"name": "a", "image": "x"});
    let create = async |api: &Api<Pod>, name: &str, spec: Value| {
        anyhow::Ok(gates(&api.create(&PostParams::default(), &pod(name, &spec)?).await?))
    };
    let asking = |name: &str| json!({"name": name, "image": "x", "resources": asks});
    let mut bound = with(asking("a"));
    bound["nodeName"] = json!("gpu-a30");
    let dry_run = PostParams { dry_run: true, ..PostParams::default() };
    world
        .until("the gate is in force", || async {
            let spec = pod("probe", &with(asking("a")))?;
            Ok(!gates(&pods.create(&dry_run, &spec).await?).is_empty())
        })
        .await?;
    let named = pod("probe", &bound)?;
    until_refused(&world, "a pod that names its node", || pods.create(&dry_run, &named)).await?;
    assert_eq!(create(&pods, "limits", with(asking("a"))).await?, ours);
    let init = json!({"containers": [plain], "initContainers": [asking("i")]});
    assert_eq!(create(&pods, "init", init).await?, ours);
    let gated_already = json!({"containers": [asking("a")], "schedulingGates": [{"name": "slicegate.dev/claim"}, {"name": "example.com/mine"}]});
    assert_eq!(create(&pods, "twice", gated_already).await?, ["slicegate.dev/claim", "example.com/mine"]);
    assert_eq!(create(&pods, "plain", with(plain.clone())).await?, Vec::<String>::new());
    assert_eq!(create(&world.api("free"), "free", with(asking("a"))).await?, Vec::<String>::new());

    refused(
        "a pod that names its node",
        pods.create(&PostParams::default(), &pod("bound", &bound)?),
        "may not name its node (spec.nodeName: gpu-a30)",
    )
    .await;

    world
        .rig
        .apply_yaml(
            "apiVersion: v1\nkind: ServiceAccount\nmetadata: {name: tenant, namespace: default}\n---\n\
             apiVersion: rbac.authorization.k8s.io/v1\nkind: ClusterRoleBinding\nmetadata: {name: tenant}\nroleRef: {apiGroup: \
             rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}\nsubjects: [{kind: ServiceAccount, name: tenant, \
             namespace: default}]\n",
        )
        .await?;
    let tenant = world.rig.kubeconfig_for("tenant", &world.rig.token("default", "tenant", None).await?)?;
    let tenant: Api<Pod> = Api::namespaced(world.rig.client_of(&tenant).await?, "default");
    let ungate = Patch::Strategic(
        json!({"spec": {"schedulingGates": [{"$patch": "delete", "name": "slicegate.dev/claim"}]}}),
    );
    let dry_run = PatchParams { dry_run: true, ..PatchParams::default() };
    until_refused(&world, "removing the gate", || tenant.patch("limits", &dry_run, &ungate)).await?;
    refused(
        "removing the gate",
        tenant.patch("limits", &PatchParams::default(), &ungate),
        "is removed by the Slicegate controller once a slice is reserved",
    )
    .await;
    tenant
        .patch("limits", &PatchParams::default(), &Patch::Merge(json!({"metadata": {"labels": {"a": "b"}}})))
        .await?;
    world.rig.down().await
}
