//! Our arithmetic of ResourceQuotas beside that of Kubernetes, on 200 generated pods in each of three namespaces: what the API
//! server charges at the creation of each pod, which it refuses, and what the quota controller makes of all of them when some
//! are over or on their way out.
//!
//! `QUOTA_SEED=… cargo test -p slicegate-rig --test cluster quota_arithmetic` tries others than the usual ones.

mod specs;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use futures::future::try_join_all;
use k8s_openapi::api::core::v1::{LimitRange, Pod, PodSpec, ResourceQuota};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use slicegate::api::convert::now;
use slicegate::api::convert::quantity::thousandths;
use slicegate::api::convert::quota::{self, Defaults};
use slicegate::controller::quotas::Tallies;
use slicegate_core::quota::{Account, Amounts, Charge, Job, Lack, Member, Namespace, Quota, State, Verdict};
use slicegate_rig::{Options, Rig, wait};

use crate::conformance::dice::Dice;
use crate::support::PATIENCE;

const SPECS: usize = 200;
/// From this one on a PriorityClass is the default.
const WITH_DEFAULT_CLASS: usize = 150;
const SEED: &str = "7";

/// What quotas with scopes may count.
const COMPUTE: [&str; 7] =
    ["pods", "cpu", "memory", "requests.cpu", "requests.memory", "limits.cpu", "limits.memory"];
/// What only quotas without scopes may count.
const OTHERS: [&str; 10] = [
    "count/pods",
    "ephemeral-storage",
    "requests.ephemeral-storage",
    "limits.ephemeral-storage",
    "hugepages-2Mi",
    "requests.hugepages-2Mi",
    "requests.nvidia.com/mig-1g.10gb",
    "requests.nvidia.com/mig-1g.10gb.me",
    "requests.nvidia.com/mig-3g.40gb",
    "requests.example.com/fpga",
];

/// By quota and resource.
type Figures = BTreeMap<(String, String), i128>;

/// The quotas of a namespace: one without scopes and one for each kind of scope. None is ever full. Where cpu and memory are not
/// counted, pods may say nothing of them.
fn quotas(namespace: &str, compute: bool) -> Vec<ResourceQuota> {
    let scoped: &[&str] = if compute { &COMPUTE } else { &["pods"] };
    let all: Vec<&str> = scoped.iter().chain(&OTHERS).copied().collect();
    let class = |operator: &str, values: &[&str]| {
        let mut requirement = json!({"scopeName": "PriorityClass", "operator": operator});
        if !values.is_empty() {
            requirement["values"] = json!(values);
        }
        json!({"scopeSelector": {"matchExpressions": [requirement]}})
    };
    let mut both = class("In", &["high"]);
    both["scopes"] = json!(["NotTerminating"]);
    let kinds: [(&str, &[&str], Value); 13] = [
        ("all", &all, json!({})),
        ("terminating", scoped, json!({"scopes": ["Terminating"]})),
        ("not-terminating", scoped, json!({"scopes": ["NotTerminating"]})),
        ("best-effort", &["pods"], json!({"scopes": ["BestEffort"]})),
        ("not-best-effort", scoped, json!({"scopes": ["NotBestEffort"]})),
        ("terminating-not-best-effort", scoped, json!({"scopes": ["Terminating", "NotBestEffort"]})),
        ("class-in", scoped, class("In", &["high", "low"])),
        ("class-not-in", scoped, class("NotIn", &["high"])),
        ("class", scoped, class("Exists", &[])),
        ("no-class", scoped, class("DoesNotExist", &[])),
        ("class-by-scope", scoped, json!({"scopes": ["PriorityClass"]})),
        ("crossing", scoped, json!({"scopes": ["CrossNamespacePodAffinity"]})),
        ("high-not-terminating", scoped, both),
    ];
    let quota = |(name, resources, mut spec): (&str, &[&str], Value)| {
        spec["hard"] = resources.iter().map(|resource| ((*resource).to_owned(), json!("1Pi"))).collect();
        let metadata = json!({"name": name, "namespace": namespace});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    };
    kinds.into_iter().map(quota).collect()
}

/// A quantity in thousandths, by nothing but whole numbers.
fn exact(quantity: &Quantity) -> i128 {
    const SUFFIXES: [(&str, i128); 12] = [
        ("Ki", 1 << 10),
        ("Mi", 1 << 20),
        ("Gi", 1 << 30),
        ("Ti", 1 << 40),
        ("Pi", 1 << 50),
        ("k", 1000),
        ("M", 1_000_000),
        ("G", 1_000_000_000),
        ("T", 1_000_000_000_000),
        ("P", 1_000_000_000_000_000),
        ("m", 0),
        ("", 1),
    ];
    let text = quantity.0.as_str();
    let (suffix, factor) = SUFFIXES.into_iter().find(|(suffix, _)| text.ends_with(suffix)).unwrap();
    let number = text.strip_suffix(suffix).unwrap();
    let (number, exponent) = number.split_once('e').unwrap_or((number, "0"));
    let (whole, part) = number.split_once('.').unwrap_or((number, ""));
    let digits: i128 = format!("{whole}{part}").parse().unwrap();
    let ten = |n: usize| 10_i128.pow(u32::try_from(n).unwrap());
    let scaled = digits * ten(exponent.parse().unwrap()) * if suffix == "m" { 1 } else { factor * 1000 };
    scaled / ten(part.len())
}

/// What is used, as the API server says it.
fn used(quotas: &[ResourceQuota]) -> Figures {
    let mut figures = Figures::new();
    for quota in quotas {
        for (resource, quantity) in quota.status.iter().flat_map(|s| s.used.iter().flatten()) {
            let amount = exact(quantity);
            assert_eq!(thousandths(quantity), Some(amount), "{quantity:?}");
            figures.insert((quota.name_any(), resource.clone()), amount);
        }
    }
    figures
}

/// What differs, on both sides.
fn apart(theirs: &Figures, ours: &Figures) -> BTreeMap<(String, String), [Option<i128>; 2]> {
    let keys = theirs.keys().chain(ours.keys());
    let both = keys.map(|key| (key.clone(), [theirs.get(key).copied(), ours.get(key).copied()]));
    both.filter(|(_, [theirs, ours])| theirs != ours).collect()
}

/// The quotas as ours, with nothing used: what is known of pods is all there is.
fn unused(quotas: &[ResourceQuota]) -> Namespace {
    let mut namespace = Namespace::default();
    for quota in quotas.iter().map(quota::quota) {
        assert_eq!(quota.unreadable, None);
        namespace.set_quota(Quota { used: Amounts::default(), ..quota });
    }
    namespace
}

/// What the pods of a namespace are charged by each quota, by our arithmetic.
fn charged(namespace: &Namespace) -> Figures {
    let standings = Account::open(now(), namespace).standings(None);
    standings.into_iter().map(|s| ((s.quota.to_string(), s.resource.to_string()), s.used)).collect()
}

fn charged_for(quotas: &[ResourceQuota], charge: &Charge) -> Figures {
    let mut namespace = unused(quotas);
    let pod = Member { charge: Arc::new(charge.clone()), state: State::Live, keys: Vec::new() };
    namespace.set_pod(now(), &"pod".into(), None, Some(&pod));
    charged(&namespace)
}

fn judged(quotas: &[ResourceQuota], charge: &Charge) -> Verdict {
    let namespace = unused(quotas);
    let job = Job { id: "job".into(), pods: vec![(Arc::new(charge.clone()), 1)], ..Job::default() };
    Account::open(now(), &namespace).judge(&job)
}

/// A namespace of the test.
struct Stand {
    name: &'static str,
    pods: Api<Pod>,
    quotas: Api<ResourceQuota>,
    defaults: Defaults,
    created: usize,
    refused: usize,
}

impl Stand {
    async fn new(
        client: &Client,
        name: &'static str,
        compute: bool,
        range: Option<&LimitRange>,
    ) -> Result<Self> {
        let quotas_of: Api<ResourceQuota> = Api::namespaced(client.clone(), name);
        let mut defaults = Defaults::default();
        if let Some(range) = range {
            // With what the API server fills into the LimitRange itself.
            let range = Api::namespaced(client.clone(), name).create(&PostParams::default(), range).await?;
            defaults.limit(&range);
        }
        for quota in quotas(name, compute) {
            quotas_of.create(&PostParams::default(), &quota).await?;
        }
        let stand = Self {
            name,
            pods: Api::namespaced(client.clone(), name),
            quotas: quotas_of,
            defaults,
            created: 0,
            refused: 0,
        };
        wait::until(PATIENCE, "the quota controller has seen all quotas", || async {
            let quotas = stand.listed().await?;
            Ok(quotas.iter().all(|quota| {
                let hard = |quota: &ResourceQuota| quota.spec.as_ref().and_then(|spec| spec.hard.clone());
                quota.status.as_ref().and_then(|status| status.hard.clone()) == hard(quota)
            }))
        })
        .await?;
        Ok(stand)
    }

    async fn listed(&self) -> Result<Vec<ResourceQuota>> {
        Ok(self.quotas.list(&ListParams::default()).await?.items)
    }

    /// Creates all pods one after another, and compares after each.
    async fn create(&mut self, specs: &[PodSpec], from: usize) -> Result<()> {
        let mut quotas = self.listed().await?;
        for (i, spec) in specs.iter().enumerate() {
            let number = from + i;
            let about = || format!("{}, pod {number}:\n{}", self.name, serde_json::to_string(spec).unwrap());
            let mut complete = spec.clone();
            if complete.runtime_class_name.is_some() {
                // As Kueue does in a Workload (`pkg/workload/resources.go`, `handlePodOverhead`).
                let overhead =
                    specs::OVERHEAD.map(|(name, amount)| (name.to_owned(), Quantity(amount.to_owned())));
                complete.overhead = Some(overhead.into());
            }
            let foreseen =
                quota::charge(&complete, &self.defaults).map_err(anyhow::Error::msg).with_context(about)?;
            let verdict = judged(&quotas, &foreseen);
            let mut metadata = json!({"name": format!("pod-{number}")});
            if number % 7 == 3 {
                metadata["finalizers"] = json!(["example.com/stays"]);
            }
            let pod: Pod = serde_json::from_value(json!({"metadata": metadata, "spec": spec}))?;
            let before = used(&quotas);
            let answer = self.pods.create(&PostParams::default(), &pod).await;
            quotas = self.listed().await?;
            let after = used(&quotas);
            let difference: Figures =
                after.iter().map(|(key, amount)| (key.clone(), amount - before[key])).collect();
            match (answer, verdict) {
                (Ok(created), Verdict::Fits) => {
                    self.created += 1;
                    let wrong = apart(&difference, &charged_for(&quotas, &foreseen));
                    assert!(wrong.is_empty(), "theirs and ours, as foreseen: {wrong:?}: {}", about());
                    let seen = quota::charge_of(&created).map_err(anyhow::Error::msg)?;
                    let wrong = apart(&difference, &charged_for(&quotas, &seen));
                    assert!(wrong.is_empty(), "theirs and ours, as created: {wrong:?}: {}", about());
                }
                (Err(kube::Error::Api(status)), Verdict::Never(Lack::Unspecified { resource, .. }))
                    if status.code == 403 && status.message.contains("must specify") =>
                {
                    self.refused += 1;
                    assert!(
                        status.message.contains(&*resource),
                        "{resource}: {} {}",
                        status.message,
                        about()
                    );
                    assert!(difference.values().all(|amount| *amount == 0));
                }
                (answer, verdict) => {
                    let answer = answer.map(|pod| pod.name_any());
                    bail!("{answer:?} where ours says {verdict:?}: {}", about())
                }
            }
        }
        Ok(())
    }

    /// Has some pods come to their end and some be deleted that stay; then the controller's figures must be ours.
    async fn end_some(&self) -> Result<()> {
        for (i, pod) in self.pods.list(&ListParams::default()).await?.items.iter().enumerate() {
            let name = pod.name_any();
            if !pod.finalizers().is_empty() {
                self.pods.delete(&name, &DeleteParams::default()).await?;
            } else if i % 4 == 0 {
                let phase = if i % 8 == 0 { "Succeeded" } else { "Failed" };
                let over = json!({"status": {"phase": phase}});
                self.pods.patch_status(&name, &PatchParams::default(), &Patch::Merge(over)).await?;
            } else if i % 4 == 1 {
                self.pods.delete(&name, &DeleteParams::default()).await?;
            }
        }
        // With every change of what is allowed, it counts anew.
        for quota in self.listed().await? {
            let more = json!({"spec": {"hard": {"pods": "1000001"}}});
            self.quotas.patch(&quota.name_any(), &PatchParams::default(), &Patch::Merge(more)).await?;
        }
        let figures = || async {
            let quotas = self.listed().await?;
            let anew = quotas.iter().all(|quota| {
                let hard = quota.status.as_ref().and_then(|status| status.hard.as_ref()?.get("pods"));
                hard.is_some_and(|pods| pods.0 == "1000001")
            });
            let pods = self.pods.list(&ListParams::default()).await?.items;
            anyhow::Ok((anew, used(&quotas), charged(&with_pods(&quotas, &pods)?)))
        };
        let agree =
            wait::until(PATIENCE, "the controller has counted anew, and comes to the same", || async {
                let (anew, theirs, ours) = figures().await?;
                Ok(anew && theirs == ours)
            })
            .await;
        if agree.is_err() {
            let (_, theirs, ours) = figures().await?;
            panic!("{}: theirs and ours: {:?}", self.name, apart(&theirs, &ours));
        }
        agree
    }
}

/// The quotas and pods of a namespace as our controller counts them.
fn with_pods(quotas: &[ResourceQuota], pods: &[Pod]) -> Result<Namespace> {
    let (mut namespace, mut tallies) = (unused(quotas), Tallies::default());
    for pod in pods {
        let member = tallies.member(pod).context("a pod that cannot be counted")?;
        namespace.set_pod(now(), &pod.uid().unwrap_or_default().into(), None, Some(&member));
    }
    Ok(namespace)
}

fn class(name: &str, value: u32, default: bool) -> Value {
    json!({
        "apiVersion": "scheduling.k8s.io/v1", "kind": "PriorityClass", "metadata": {"name": name},
        "value": value, "globalDefault": default,
    })
}

/// Waits until the API server gives pods this PriorityClass where they name none.
async fn until_default(client: &Client, class: &str) -> Result<()> {
    let probe: Pod = serde_json::from_value(json!({
        "metadata": {"generateName": "probe-"},
        "spec": {"containers": [{"name": "main", "image": "example.com/none"}]},
    }))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), "default");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    wait::until(PATIENCE, "there is a default PriorityClass", || async {
        let created = pods.create(&dry, &probe).await?;
        Ok(created.spec.and_then(|spec| spec.priority_class_name).as_deref() == Some(class))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn our_arithmetic_is_that_of_kubernetes_for_two_hundred_pods() -> Result<()> {
    let rig = Rig::up(Options::temporary()?).await?;
    let client = rig.client().await?;
    let overhead: BTreeMap<&str, &str> = specs::OVERHEAD.into();
    let range: LimitRange = serde_json::from_value(json!({
        "metadata": {"name": "defaults"},
        "spec": {"limits": [{
            "type": "Container",
            "default": {"cpu": "16", "memory": "2Gi", "ephemeral-storage": "8Gi"},
            "defaultRequest": {"cpu": "50m", "ephemeral-storage": "100Mi"},
        }]},
    }))?;
    let namespaces = ["strict", "ranged", "loose"];
    let mut objects: Vec<Value> = namespaces
        .iter()
        .map(|name| json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}}))
        .collect();
    objects.extend(
        [("high", 1000), ("medium", 500), ("low", 10)].map(|(name, value)| class(name, value, false)),
    );
    objects.push(json!({
        "apiVersion": "node.k8s.io/v1", "kind": "RuntimeClass", "metadata": {"name": specs::HEAVY},
        "handler": "heavy", "overhead": {"podFixed": overhead},
    }));
    rig.apply_objects(objects).await?;
    let mut stands = try_join_all([
        Stand::new(&client, "strict", true, None),
        Stand::new(&client, "ranged", true, Some(&range)),
        Stand::new(&client, "loose", false, None),
    ])
    .await?;

    let seed = std::env::var("QUOTA_SEED").unwrap_or_else(|_| SEED.to_owned());
    let mut dice = Dice::new(seed.parse().context("QUOTA_SEED")?);
    let specs: Vec<PodSpec> = (0..SPECS).map(|_| specs::spec(&mut dice)).collect();
    let begun = Instant::now();
    let (without, with) = specs.split_at(WITH_DEFAULT_CLASS);
    try_join_all(stands.iter_mut().map(|stand| stand.create(without, 0))).await?;
    rig.apply_objects(vec![class("usual", 100, true)]).await?;
    until_default(&client, "usual").await?;
    for stand in &mut stands {
        stand.defaults.priority_class = Some("usual".into());
    }
    try_join_all(stands.iter_mut().map(|stand| stand.create(with, WITH_DEFAULT_CLASS))).await?;
    for stand in &stands {
        println!("{}: {} pods created, {} refused", stand.name, stand.created, stand.refused);
        assert!(stand.created >= SPECS / 3, "{}", stand.name);
    }
    assert!(stands[0].refused > 0 && stands[1].refused == 0 && stands[2].refused == 0);
    println!("{SPECS} specs in {} namespaces took {:.1?}", stands.len(), begun.elapsed());
    // What is nowhere charged has not been compared.
    for stand in &stands {
        let figures = used(&stand.listed().await?);
        let nothing: Vec<_> =
            figures.iter().filter(|(_, amount)| **amount == 0).map(|(key, _)| key).collect();
        let allowed = |(quota, _): &&(String, String)| stand.name != "loose" && quota == "best-effort";
        assert!(nothing.iter().all(allowed), "{}: {nothing:?}", stand.name);
    }
    try_join_all(stands.iter().map(Stand::end_some)).await?;
    rig.down().await
}
