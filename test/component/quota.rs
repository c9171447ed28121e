//! What `kubectl slices quota` prints of given reports.

use serde_json::{Value, json};
use slicegate::api::SliceQuotaReport;
use slicegate::cli::quota::{Format, Quota, show};

/// A ClusterQueue of a cohort with a namespace, one that lends memory, and the cohort.
fn reports() -> Vec<SliceQuotaReport> {
    let figures = |nominal: u64, reserved: u64, claimed: u64, possible: u64, free: u64| {
        json!({"nominal": nominal, "borrowed": 0, "reserved": reserved, "admitted": claimed, "claimed": claimed,
               "possible": possible, "free": free})
    };
    let profile = |name: &str, gib: u32, units: u32, mut figures: Value| {
        figures["profile"] = json!(name);
        figures["sliceGiB"] = json!(gib);
        figures["sliceUnits"] = json!(units);
        figures["freeUnmoved"] = json!(1);
        figures["nominalOfAll"] = figures["nominal"].clone();
        figures
    };
    let flavor = |profiles: Value, memory: Value| {
        let mut flavor = json!({
            "name": "a30", "nodes": 1, "gpus": [{"model": "NVIDIA A30", "count": 2}], "together": "No",
            "gib": figures(48, 18, 12, 48, 36), "units": figures(8, 3, 2, 8, 6), "profiles": profiles,
        });
        if !memory.is_null() {
            flavor["gpuMemory"] = memory;
        }
        flavor
    };
    let report = |name: &str, kind: &str, subject: &str, cohort: Value, flavors: Value, mismatches: &str| {
        let mut status = json!({
            "subject": {"kind": kind, "name": subject}, "workloads": {"pending": 2, "reserving": 1, "admitted": 1},
            "gib": figures(48, 18, 12, 48, 36), "units": figures(8, 3, 2, 8, 6), "flavors": flavors, "mismatches": mismatches,
        });
        if !cohort.is_null() {
            status["cohort"] = cohort;
        }
        json!({"apiVersion": "slicegate.dev/v1alpha1", "kind": "SliceQuotaReport", "metadata": {"name": name}, "status": status})
    };
    let quarters = profile("1g.6gb", 6, 1, figures(9, 1, 0, 8, 6));
    let mut media = profile("1g.6gb+me", 6, 1, figures(2, 0, 0, 2, 2));
    media.as_object_mut().unwrap().remove("free");
    media["borrowingLimit"] = json!(1);
    let mut mig = report(
        "mig",
        "ClusterQueue",
        "mig",
        json!("lab"),
        json!([flavor(json!([quarters, media]), Value::Null)]),
        "NominalExceedsPhysical",
    );
    let message =
        "flavor a30: 9 × 1g.6gb promised, 8 possible. Lower nominalQuota to what is possible, or add GPUs.";
    mig["status"]["conditions"] = json!([{"type": "NominalExceedsPhysical", "status": "True", "reason": "Mismatch",
        "message": message, "lastTransitionTime": "2026-11-24T10:00:00Z"}]);
    mig["status"]["namespaces"] = json!([
        {"name": "team", "localQueues": [{"name": "mig", "pending": 2,
            "resources": [{"resource": "nvidia.com/mig-1g.6gb", "reserved": 1, "admitted": 0, "claimed": 0}]}],
         "resourceQuotas": [{"name": "gpus", "resource": "requests.nvidia.com/mig-1g.6gb", "hard": 4, "used": 1, "inFlight": 2}]},
        {"name": "other", "localQueues": [{"name": "mig", "pending": 0}]},
    ]);
    let mut memory = figures(48, 18, 12, 48, 36);
    memory["nominalOfAll"] = json!(48);
    let whole = profile("4g.24gb", 24, 4, figures(0, 0, 0, 2, 1));
    let by_memory =
        report("pool", "ClusterQueue", "pool", Value::Null, json!([flavor(json!([whole]), memory)]), "None");
    let cohort = report("lab.cohort", "Cohort", "lab", Value::Null, json!([]), "None");
    [cohort, by_memory, mig].map(|report| serde_json::from_value(report).unwrap()).into()
}

fn shown(args: &[&str]) -> Result<String, String> {
    #[derive(clap::Parser)]
    struct Line {
        #[command(flatten)]
        quota: Quota,
    }
    let line = <Line as clap::Parser>::try_parse_from(["quota"].iter().chain(args)).unwrap();
    show(reports(), &line.quota).map_err(|error| error.to_string())
}

fn lines(args: &[&str]) -> Vec<String> {
    shown(args).unwrap().lines().map(str::to_owned).collect()
}

#[test]
fn all_queues_are_shown_with_what_does_not_agree() {
    assert_eq!(
        lines(&[]),
        [
            "CLUSTERQUEUE   COHORT   NOMINAL   RESERVED   CLAIMED   FREE     PHYSICAL   PENDING   MISMATCHES",
            "mig            lab      48 GiB    18 GiB     12 GiB    36 GiB   48 GiB     2         NominalExceedsPhysical",
            "pool           -        48 GiB    18 GiB     12 GiB    36 GiB   48 GiB     2         None",
            "cohort/lab     -        48 GiB    18 GiB     12 GiB    36 GiB   48 GiB     2         None",
            "",
            "CLUSTERQUEUE   FLAVOR   PROFILE        NOMINAL   RESERVED   CLAIMED   FREE   POSSIBLE",
            "mig            a30      1g.6gb         9         1          0         6      8",
            "mig            a30      1g.6gb+me      2         0          0         -      2",
            "pool           a30      memory (GiB)   48        18         12        36     48",
            "pool           a30      4g.24gb        0         0          0         1      2",
            "",
            "GiB as the names of profiles say. RESERVED: workloads with quota; CLAIMED: on nodes; FREE: can still be formed, if slices \
             moved; POSSIBLE: with nothing else on the GPUs.",
            "",
            "mig: NominalExceedsPhysical: flavor a30: 9 × 1g.6gb promised, 8 possible. Lower nominalQuota to what is possible, or add \
             GPUs.",
        ]
    );
    let pool = lines(&["--cluster-queue", "pool"]);
    assert_eq!(pool.last().unwrap(), "All quotas agree with each other and with the GPUs.");
    assert!(!pool.iter().any(|line| line.starts_with("mig") || line.starts_with("cohort")));
}

#[test]
fn wide_shows_all_figures() {
    let wide = lines(&["-o", "wide", "--cluster-queue", "mig"]);
    assert!(
        wide[0]
            .ends_with("MISMATCHES               BORROWED   ADMITTED   UNITS CLAIMED   UNITS FREE   UNITS"),
        "{}",
        wide[0]
    );
    let words = |line: &str| line.split_whitespace().map(str::to_owned).collect::<Vec<_>>().join(" ");
    let media = wide.iter().find(|line| line.contains("1g.6gb+me")).unwrap();
    assert_eq!(words(media), "mig a30 1g.6gb+me 2 0 0 - 2 0 1 - 0 1 2 6 1 1 2 × NVIDIA A30 No");
}

#[test]
fn a_namespace_sees_what_it_may_use_and_uses() {
    assert_eq!(
        lines(&["-n", "team"]),
        [
            "Namespace team",
            "",
            "LOCALQUEUE   CLUSTERQUEUE   RESOURCE                  LENT TO ALL   RESERVED BY ALL   RESERVED   CLAIMED",
            "mig          mig            nvidia.com/mig-1g.6gb      9             1                 1          0",
            "mig          mig            nvidia.com/mig-1g.6gb.me   2             0                 0          0",
            "",
            "RESOURCEQUOTA   RESOURCE                         HARD   USED   IN FLIGHT   LEFT",
            "gpus            requests.nvidia.com/mig-1g.6gb   4      1      2           1",
            "",
            "mig: NominalExceedsPhysical: flavor a30: 9 × 1g.6gb promised, 8 possible. Lower nominalQuota to what is possible, or add \
             GPUs.",
        ]
        .map(|line| line.replace("RESOURCE                  LENT", "RESOURCE                   LENT"))
    );
    let other = shown(&["-n", "other"]).unwrap();
    assert!(
        other.contains("No ResourceQuota of the namespace is about MIG slices or their memory."),
        "{other}"
    );
}

#[test]
fn csv_has_a_header_that_stays_and_a_line_for_each_row() {
    assert_eq!(
        lines(&["-o", "csv"]),
        [
            "kind,name,cohort,flavor,resource,profile,gib_each,units_each,nominal,borrowing_limit,lending_limit,borrowed,reserved,\
             admitted,claimed,free,free_unmoved,possible,nominal_of_all,nominal_gib,reserved_gib,admitted_gib,claimed_gib,mismatches",
            "ClusterQueue,mig,lab,a30,nvidia.com/mig-1g.6gb,1g.6gb,6,1,9,,,0,1,0,0,6,1,8,9,54,6,0,0,NominalExceedsPhysical",
            "ClusterQueue,mig,lab,a30,nvidia.com/mig-1g.6gb.me,1g.6gb+me,6,1,2,1,,0,0,0,0,,1,2,2,12,0,0,0,NominalExceedsPhysical",
            "ClusterQueue,pool,,a30,slicegate.dev/gpu-memory,,1,,48,,,0,18,12,12,36,,48,48,48,18,12,12,None",
            "ClusterQueue,pool,,a30,nvidia.com/mig-4g.24gb,4g.24gb,24,4,0,,,0,0,0,0,1,1,2,0,0,0,0,0,None",
        ]
    );
    assert_eq!(
        lines(&["-o", "csv", "-n", "team"]),
        [
            "namespace,local_queue,cluster_queue,resource_quota,resource,queue_nominal,queue_reserved,reserved,admitted,claimed,hard,used,\
             in_flight,left",
            "team,mig,mig,,nvidia.com/mig-1g.6gb,9,1,1,0,0,,,,",
            "team,mig,mig,,nvidia.com/mig-1g.6gb.me,2,0,0,0,0,,,,",
            "team,,,gpus,requests.nvidia.com/mig-1g.6gb,,,,,,4,1,2,1",
        ]
    );
}

#[test]
fn json_and_yaml_are_the_reports_of_what_is_asked_about() {
    let parsed: Value = serde_json::from_str(&shown(&["-o", "json"]).unwrap()).unwrap();
    let names: Vec<&str> =
        parsed.as_array().unwrap().iter().map(|r| r["metadata"]["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["mig", "pool", "lab.cohort"]);
    let yaml: Value = serde_saphyr::from_str(&shown(&["-o", "yaml"]).unwrap()).unwrap();
    assert_eq!(yaml, parsed);
    let team: Value = serde_json::from_str(&shown(&["-o", "json", "-n", "team"]).unwrap()).unwrap();
    assert_eq!(team.as_array().unwrap().len(), 1);
    assert_eq!(team[0]["status"]["namespaces"].as_array().unwrap().len(), 1, "what is another's is left out");
    assert_eq!(
        (&team[0]["apiVersion"], &team[0]["kind"]),
        (&json!("slicegate.dev/v1alpha1"), &json!("SliceQuotaReport"))
    );
}

#[test]
fn what_is_not_there_is_an_error_that_says_what_is() {
    let error = shown(&["--cluster-queue", "mgi"]).unwrap_err();
    assert!(
        error.starts_with("there is no report of a ClusterQueue \"mgi\"; there are reports of: mig, pool."),
        "{error}"
    );
    let error = shown(&["--cluster-queue", "lab"]).unwrap_err();
    assert!(error.contains("\"lab\""), "a Cohort is none: {error}");
    let error = shown(&["-n", "nowhere"]).unwrap_err();
    assert!(error.starts_with("namespace \"nowhere\" has no LocalQueue of a ClusterQueue"), "{error}");
    assert!(error.contains("these have: other, team") && error.contains("kueue/local-queue.yaml"), "{error}");
    let error = shown(&["-n", "team", "--cluster-queue", "pool"]).unwrap_err();
    assert!(error.contains("has no LocalQueue of ClusterQueue \"pool\""), "{error}");
    let none = show(Vec::new(), &Quota { output: Format::Table, ..Quota::default() }).unwrap();
    assert!(none.starts_with("No SliceQuotaReports: there is no ClusterQueue"), "{none}");
}
