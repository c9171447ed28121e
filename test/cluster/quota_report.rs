//! SliceQuotaReports: figures that follow what runs, mismatches that are told until they are mended, and `kubectl slices quota`.

use anyhow::{Context, Result, ensure};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use slicegate::api::SliceQuotaReport;
use slicegate::api::slice_quota_report::{Figures, Profile, SliceQuotaReportStatus};
use slicegate_rig::operator::GpuNode;

use crate::queues;
use crate::shared::Group;
use crate::support::get;
use crate::watched::Watched;

const MEMORY: &str = "slicegate.dev/gpu-memory";

/// What two A30s can form of each profile.
const ALL: [(&str, u32); 5] =
    [("1g.6gb", 8), ("1g.6gb.me", 2), ("2g.12gb", 4), ("2g.12gb.me", 2), ("4g.24gb", 2)];

static CLUSTER: Group = Group::new(&[]);

/// A place with two A30s that no flavor of the installed queues has, and quota for as much as they can form.
async fn enter(name: &str) -> Result<Watched> {
    let node = GpuNode::new(name, "A30-24GB", 2, "A30-OF-A-TEST");
    let place = Watched::enter(&CLUSTER, name, vec![node]).await?;
    place.queue(json!({}), &ALL).await?;
    Ok(place)
}

/// The quotas with another figure for one profile.
fn with(profile: &str, quota: u32) -> Vec<(&'static str, u32)> {
    ALL.iter().map(|(name, n)| (*name, if *name == profile { quota } else { *n })).collect()
}

async fn report(place: &Watched, name: &str) -> Result<Option<SliceQuotaReport>> {
    Ok(Api::<SliceQuotaReport>::all(place.client.clone()).get_opt(name).await?)
}

async fn status(place: &Watched, name: &str) -> Result<Option<SliceQuotaReportStatus>> {
    Ok(report(place, name).await?.and_then(|report| report.status))
}

/// Waits until a report has just these mismatches; gives their messages, one after another.
async fn until_mismatches(place: &Watched, name: &str, codes: &str) -> Result<String> {
    let status = place
        .until(&format!("the report {name} says: {codes}"), || async {
            Ok(status(place, name).await?.filter(|status| status.mismatches == codes))
        })
        .await?;
    let types: Vec<&str> = status.conditions.iter().map(|condition| condition.type_.as_str()).collect();
    let told = if types.is_empty() { "None".to_owned() } else { types.join(",") };
    ensure!(told == codes, "conditions {told}");
    ensure!(status.conditions.iter().all(|condition| condition.status == "True"), "{:?}", status.conditions);
    Ok(status.conditions.into_iter().map(|condition| condition.message).collect::<Vec<_>>().join("\n"))
}

fn row<'s>(status: &'s SliceQuotaReportStatus, profile: &str) -> Option<&'s Profile> {
    status.flavors.iter().flat_map(|flavor| &flavor.profiles).find(|row| row.profile == profile)
}

/// The controller's metrics.
async fn metrics(place: &Watched) -> Result<String> {
    let port = place.rig().process("controller").and_then(|process| process.spec().port).context("port")?;
    get(port, "/metrics").await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_report_follows_what_runs_and_goes_with_its_queue() -> Result<()> {
    let place = enter("report").await?;
    until_mismatches(&place, "report", "None").await?;
    let empty = status(&place, "report").await?.context("a report")?;
    assert_eq!((empty.gib.possible, empty.gib.free, empty.units.possible), (48, Some(48), 8));
    assert_eq!(empty.flavors[0].gpus[0].count, 2);
    place.submit(&place.job("half", 1, &[("2g.12gb", 1)])).await?;
    place.until_running("half", 1).await?;
    let figures =
        Figures { nominal: 4, borrowed: 0, reserved: 1, admitted: 1, claimed: 1, possible: 4, free: Some(3) };
    let running = place
        .until("the report has followed", || async {
            let status = status(&place, "report").await?;
            Ok(status.filter(|status| row(status, "2g.12gb").is_some_and(|row| row.lent.figures == figures)))
        })
        .await?;
    assert_eq!((running.gib.reserved, running.gib.claimed, running.units.claimed), (12, 12, 2));
    place
        .until("the LocalQueue has followed", || async {
            let status = status(&place, "report").await?.unwrap_or_default();
            let held =
                status.namespaces.iter().flat_map(|n| &n.local_queues).flat_map(|local| &local.resources);
            let mut half = held.filter(|held| held.resource == "nvidia.com/mig-2g.12gb");
            Ok(half.any(|held| (held.reserved, held.admitted, held.claimed) == (1, 1, 1)))
        })
        .await?;
    let series = r#"slicegate_quota_slices{cluster_queue="report",kind="claimed",profile="2g.12gb"} 1"#;
    place
        .until("the metrics have followed", || async { Ok(metrics(&place).await?.contains(series)) })
        .await?;

    // Reports are made anew for another ClusterQueue, and this one is not written again.
    let before = report(&place, "report").await?.and_then(|report| report.resource_version());
    for name in ["report-one", "report-two"] {
        let other = queues::cluster_queue(name, &["report"], &[("report", &[])]);
        place.rig().apply_objects(vec![other]).await?;
        until_mismatches(&place, name, "NoMIGResource").await?;
    }
    assert_eq!(report(&place, "report").await?.and_then(|report| report.resource_version()), before);

    // What somebody does to it is put right.
    let nonsense = json!({"status": {"mismatches": "Nonsense", "gib": {"nominal": 7}}});
    let api: Api<SliceQuotaReport> = Api::all(place.client.clone());
    let merge = kube::api::Patch::Merge(&nonsense);
    api.patch_status("report", &kube::api::PatchParams::default(), &merge).await?;
    until_mismatches(&place, "report", "None").await?;
    api.delete("report", &kube::api::DeleteParams::default()).await?;
    until_mismatches(&place, "report", "None").await?;

    place.kubectl("delete job half --wait=false").await?;
    place.until_released().await?;
    for queue in ["report-one", "report-two", "report"] {
        place.rig().kubectl(["delete", "clusterqueue", queue, "--wait=false"]).await?;
    }
    place
        .until("the reports are gone", || async {
            let mut left = 0;
            for name in ["report", "report-one", "report-two"] {
                left += usize::from(report(&place, name).await?.is_some());
            }
            Ok(left == 0)
        })
        .await?;
    place
        .until("the metrics are gone", || async {
            Ok(!metrics(&place).await?.contains(r#"cluster_queue="report""#))
        })
        .await?;
    place.leave().await
}

/// A ResourceQuota of the test's namespace.
async fn budget(place: &Watched, hard: Value) -> Result<()> {
    let quota = json!({
        "apiVersion": "v1", "kind": "ResourceQuota",
        "metadata": {"name": "gpus", "namespace": place.name()},
        "spec": {"hard": hard},
    });
    place.rig().apply_objects(vec![quota]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_agree_is_told_until_it_is_mended() -> Result<()> {
    let place = enter("agree").await?;
    let name = place.name();
    until_mismatches(&place, name, "None").await?;

    place.queue(json!({}), &with("1g.6gb", 9)).await?;
    let told = until_mismatches(&place, name, "NominalExceedsPhysical").await?;
    assert!(told.starts_with("flavor agree: 9 × 1g.6gb promised, 8 possible. Lower nominalQuota"), "{told}");
    let series = r#"slicegate_quota_mismatch{cluster_queue="agree",code="NominalExceedsPhysical"}"#;
    assert!(metrics(&place).await?.contains(&format!("{series} 1")));
    place.queue(json!({}), &ALL).await?;
    until_mismatches(&place, name, "None").await?;
    assert!(metrics(&place).await?.contains(&format!("{series} 0")));

    place.queue(json!({}), &with("4g.24gb", 0)).await?;
    let told = until_mismatches(&place, name, "ProfileNotCovered").await?;
    assert!(told.contains("the profile 4g.24gb, which no ClusterQueue lends"), "{told}");

    let nowhere = queues::flavor("agree-nowhere", &json!({"pool": "nowhere"}));
    let queue = queues::cluster_queue(name, &[name], &[(name, &ALL), ("agree-nowhere", &[("1g.6gb", 1)])]);
    place.rig().apply_objects(vec![nowhere, queue]).await?;
    let told = until_mismatches(&place, name, "FlavorWithoutNodes").await?;
    assert!(told.contains("flavor agree-nowhere: no node has the labels pool=nowhere"), "{told}");

    place.queue(json!({}), &ALL).await?;
    budget(&place, json!({"requests.nvidia.com/mig-1g.6gb": 3})).await?;
    let told = until_mismatches(&place, name, "NamespaceQuotaBelowNominal").await?;
    assert!(told.contains("ResourceQuota gpus of namespace agree allows 3 × 1g.6gb"), "{told}");
    budget(&place, json!({"requests.nvidia.com/mig-1g.6gb": 9})).await?;
    let told = until_mismatches(&place, name, "NamespaceQuotaAboveNominal").await?;
    assert!(told.contains("allows 9 × 1g.6gb, and ClusterQueue agree can give it 8 at most"), "{told}");
    budget(&place, json!({"requests.nvidia.com/mig-1g.6gb": 8, "requests.slicegate.dev/gpu-memory": 49_152}))
        .await?;
    let told = until_mismatches(&place, name, "MemoryUnitMismatch").await?;
    assert!(told.contains("ResourceQuota gpus of namespace agree allows 49152"), "{told}");
    budget(&place, json!({"requests.nvidia.com/mig-1g.6gb": 8, "requests.slicegate.dev/gpu-memory": 48}))
        .await?;
    until_mismatches(&place, name, "None").await?;
    let shown = status(&place, name).await?.context("a report")?;
    let hard: Vec<u64> = shown.namespaces[0].resource_quotas.iter().map(|quota| quota.hard).collect();
    assert_eq!(hard, [8, 48]);
    place.kubectl("delete resourcequota gpus").await?;
    place.leave().await
}

#[tokio::test(flavor = "multi_thread")]
async fn quotas_that_cannot_be_read_and_what_others_promise_are_told_of_those_whom_it_concerns() -> Result<()>
{
    let place = enter("others").await?;
    let name = place.name();
    until_mismatches(&place, name, "None").await?;

    // In devices by the thousand, by parts, or in bytes.
    let written = |resource: &str, nominal: &str| {
        let mut queue = queues::cluster_queue("others-odd", &[name], &[(name, &[])]);
        let group = &mut queue["spec"]["resourceGroups"][0];
        group["coveredResources"].as_array_mut().unwrap().push(json!(resource));
        group["flavors"][0]["resources"]
            .as_array_mut()
            .unwrap()
            .push(json!({"name": resource, "nominalQuota": nominal}));
        queue
    };
    place.rig().apply_objects(vec![written("nvidia.com/mig-4g.24gb", "500m")]).await?;
    let told = until_mismatches(&place, "others-odd", "UnreadableQuota").await?;
    assert!(
        told.starts_with("nominalQuota 500m of nvidia.com/mig-4g.24gb in flavor others is no whole number"),
        "{told}"
    );
    until_mismatches(&place, name, "None").await?;
    place.rig().apply_objects(vec![written(MEMORY, "48Gi")]).await?;
    let told = until_mismatches(&place, "others-odd", "MemoryUnitMismatch").await?;
    assert!(
        told.contains("48Gi of slicegate.dev/gpu-memory in flavor others has a suffix of bytes"),
        "{told}"
    );
    place.rig().apply_objects(vec![written(MEMORY, "48")]).await?;
    until_mismatches(&place, "others-odd", "None").await?;

    // Two ClusterQueues of one flavor: a stranger, and then a member of the same cohort.
    let second = |cohort: Option<&str>| {
        let mut queue = queues::cluster_queue("others-odd", &[name], &[(name, &[("4g.24gb", 1)])]);
        if let Some(cohort) = cohort {
            queue["spec"]["cohortName"] = json!(cohort);
        }
        queue
    };
    place.rig().apply_objects(vec![second(None)]).await?;
    let told = until_mismatches(&place, name, "NominalExceedsPhysical").await?;
    assert!(
        told.contains("3 × 4g.24gb promised by ClusterQueues others, others-odd together, 2 possible"),
        "{told}"
    );
    let mut first = queues::cluster_queue(name, &[name], &[(name, &ALL)]);
    first["spec"]["cohortName"] = json!("others-lab");
    place.rig().apply_objects(vec![first, second(Some("others-lab"))]).await?;
    until_mismatches(&place, name, "OvercommittedCohort").await?;
    let told = until_mismatches(&place, "others-lab.cohort", "OvercommittedCohort").await?;
    assert!(told.starts_with("flavor others: 3 × 4g.24gb promised, 2 possible."), "{told}");
    let cohort = status(&place, "others-lab.cohort").await?.context("a report of the cohort")?;
    assert_eq!((cohort.cluster_queues.len(), cohort.subject.name.as_str()), (2, "others-lab"));
    place.rig().kubectl(["delete", "clusterqueue", "others-odd", "--wait=false"]).await?;
    until_mismatches(&place, name, "None").await?;
    until_mismatches(&place, "others-lab.cohort", "None").await?;
    place.queue(json!({}), &ALL).await?;
    place
        .until("the cohort and its report are gone", || async {
            Ok(report(&place, "others-lab.cohort").await?.is_none())
        })
        .await?;
    place.leave().await
}

/// Runs `kubectl slices quota`; what it prints, or what it says is wrong.
async fn quota(place: &Watched, args: &[&str]) -> Result<Result<String, String>> {
    let output = tokio::process::Command::new(place.operator.kubectl_slices())
        .env("KUBECONFIG", place.rig().kubeconfig())
        .arg("quota")
        .args(args)
        .output()
        .await?;
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    Ok(if output.status.success() { Ok(text(&output.stdout)) } else { Err(text(&output.stderr)) })
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_slices_quota_shows_a_queue_and_a_namespace_in_every_format() -> Result<()> {
    let place = enter("lead").await?;
    budget(&place, json!({"requests.nvidia.com/mig-2g.12gb": 4})).await?;
    place.submit(&place.job("halves", 2, &[("2g.12gb", 1)])).await?;
    place.until_running("halves", 2).await?;
    place
        .until("the report has followed", || async {
            let status = status(&place, "lead").await?.unwrap_or_default();
            let used = status
                .namespaces
                .iter()
                .flat_map(|n| &n.resource_quotas)
                .any(|q| (q.used, q.in_flight) == (2, 0));
            let held =
                status.namespaces.iter().flat_map(|n| &n.local_queues).flat_map(|local| &local.resources);
            let all = |of: (u64, u64, u64)| of == (2, 2, 2);
            let figures = row(&status, "2g.12gb").map(|row| row.lent.figures.clone()).unwrap_or_default();
            Ok(used
                && held.map(|held| (held.reserved, held.admitted, held.claimed)).any(all)
                && all((figures.reserved, figures.admitted, figures.claimed)))
        })
        .await?;
    let shown = async |args: &[&str]| quota(&place, args).await?.map_err(anyhow::Error::msg);
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let table = shown(&["--cluster-queue", "lead"]).await?;
    assert!(table.lines().any(|line| words(line) == "lead lead 2g.12gb 4 2 2 2 4"), "{table}");
    assert!(table.contains("All quotas agree with each other and with the GPUs."), "{table}");
    let wide = shown(&["--cluster-queue", "lead", "-o", "wide"]).await?;
    assert!(wide.contains("2 × NVIDIA A30"), "{wide}");
    let csv = shown(&["--cluster-queue", "lead", "-o", "csv"]).await?;
    let half = csv.lines().find(|line| line.contains("2g.12gb,2g.12gb,")).context(csv.clone())?;
    assert_eq!(
        half,
        "ClusterQueue,lead,,lead,nvidia.com/mig-2g.12gb,2g.12gb,12,2,4,,,0,2,2,2,2,2,4,4,48,24,24,24,None"
    );
    let json: Value = serde_json::from_str(&shown(&["--cluster-queue", "lead", "-o", "json"]).await?)?;
    assert_eq!(json[0]["status"]["subject"]["name"], "lead");
    let yaml: Value = serde_saphyr::from_str(&shown(&["--cluster-queue", "lead", "-o", "yaml"]).await?)?;
    assert_eq!(yaml[0]["status"]["gib"], json[0]["status"]["gib"]);

    let namespace = shown(&["-n", "lead"]).await?;
    let has = |wanted: &str| namespace.lines().any(|line| words(line) == wanted);
    assert!(has("mig lead nvidia.com/mig-2g.12gb 4 2 2 2"), "{namespace}");
    assert!(has("gpus requests.nvidia.com/mig-2g.12gb 4 2 0 2"), "{namespace}");
    let csv = shown(&["-n", "lead", "-o", "csv"]).await?;
    assert!(
        csv.lines().any(|line| line == "lead,,,gpus,requests.nvidia.com/mig-2g.12gb,,,,,,4,2,0,2"),
        "{csv}"
    );
    assert!(shown(&[]).await?.contains("lead"), "all of them");

    let error = quota(&place, &["--cluster-queue", "laed"]).await?.unwrap_err();
    assert!(
        error.contains("there is no report of a ClusterQueue \"laed\"") && error.contains("lead"),
        "{error}"
    );
    let error = quota(&place, &["-n", "kube-system"]).await?.unwrap_err();
    assert!(error.contains("namespace \"kube-system\" has no LocalQueue"), "{error}");
    place.leave().await
}
