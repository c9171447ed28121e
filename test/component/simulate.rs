//! `slicegate simulate`, as it is called.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use tempfile::TempDir;

struct Ended {
    code: i32,
    out: String,
    err: String,
}

fn simulate(arguments: &[&str]) -> Ended {
    let output =
        Command::new(env!("CARGO_BIN_EXE_slicegate")).arg("simulate").args(arguments).output().unwrap();
    Ended {
        code: output.status.code().unwrap(),
        out: String::from_utf8(output.stdout).unwrap(),
        err: String::from_utf8(output.stderr).unwrap(),
    }
}

fn well(arguments: &[&str]) -> String {
    let ended = simulate(arguments);
    assert_eq!((ended.code, ended.err.as_str()), (0, ""), "{arguments:?}");
    ended.out
}

/// What is said, after `error: `, of what cannot be used.
fn refused(arguments: &[&str]) -> String {
    let ended = simulate(arguments);
    assert_eq!((ended.code, ended.out.as_str()), (2, ""), "{arguments:?}: {}", ended.err);
    ended.err.trim_start_matches("error: ").trim_end().to_owned()
}

fn file(folder: &TempDir, name: &str, content: &str) -> String {
    let path = folder.path().join(name);
    fs::write(&path, content).unwrap();
    path.to_str().unwrap().to_owned()
}

const SMALL: [&str; 6] = ["--gpus", "8", "--model", "A100-80GB", "--arrivals", "400"];

fn small<'a>(more: &[&'a str]) -> Vec<&'a str> {
    SMALL.iter().chain(more).copied().collect()
}

#[test]
fn policies_are_compared_in_a_table_and_as_json() {
    let asked = small(&["--policy", "slicegate", "--policy", "oracle", "--seeds", "3"]);
    let table = well(&asked);
    let first = table.lines().next().unwrap();
    assert_eq!(
        first,
        "8 × A100-80GB · uniform, load 0.9, 400 requests, the first 80 not counted · 3 seeds, ± 95 % confidence"
    );
    assert!(
        table.contains("SLICES ACCEPTED") && table.contains("Against slicegate, seed by seed"),
        "{table}"
    );
    let json = well(&[asked.as_slice(), &["--json"]].concat());
    let report: Value = serde_json::from_str(&json).unwrap();
    let policies = report["policies"].as_array().unwrap();
    assert_eq!(policies.len(), 2);
    for policy in policies {
        for figure in ["requestAcceptance", "sliceAcceptance", "utilisation", "fragmentationShare"] {
            let mean = policy[figure]["mean"].as_f64().unwrap();
            assert!((0.0..=1.0).contains(&mean), "{figure} {mean}");
            assert!(policy[figure]["halfWidth"].is_number());
        }
        assert_eq!(policy["profiles"].as_array().unwrap().len(), 6, "those that were asked for");
        assert_eq!(policy["movesPerHundred"]["mean"], 0.0);
    }
    let of = |policy: &Value| policy["sliceAcceptance"]["mean"].as_f64().unwrap();
    let difference = report["differences"][0]["sliceAcceptance"]["mean"].as_f64().unwrap();
    assert!((of(&policies[1]) - of(&policies[0]) - difference).abs() < 1e-9);
    assert_eq!(json, well(&[asked.as_slice(), &["--json"]].concat()), "a seed says everything");
    assert_ne!(json, well(&[asked.as_slice(), &["--json", "--seed", "9"]].concat()));
    let single: Value = serde_json::from_str(&well(&small(&["--json"]))).unwrap();
    assert!(single["policies"][0]["sliceAcceptance"]["halfWidth"].is_null(), "one seed has no interval");
}

#[test]
fn moves_and_known_durations_are_slicegates() {
    let asked = ["--arrivals", "5000", "--gpus", "50", "--seeds", "4", "--json"];
    let accepted = |more: &[&str]| {
        let report: Value = serde_json::from_str(&well(&[&asked, more].concat())).unwrap();
        let policy = &report["policies"][0];
        let figure = |name: &str| policy[name]["mean"].as_f64().unwrap();
        (figure("sliceAcceptance"), figure("movesPerHundred"))
    };
    let (still, none) = accepted(&[]);
    let (moving, moves) = accepted(&["--moves", "2", "--movable", "1"]);
    let (known, _) = accepted(&["--known-durations"]);
    assert!(still < moving && still < known, "{still} {moving} {known}");
    assert!(none == 0.0 && moves > 0.0);
    assert_eq!(accepted(&["--moves", "2"]), (still, 0.0), "nothing may be moved");
}

#[test]
fn in_a_queue_requests_wait() {
    let asked = small(&["--mode", "queue", "--distribution", "migbench", "--load", "1.4"]);
    let table = well(&asked);
    assert!(table.contains("MEAN WAIT") && table.contains("MAKESPAN"), "{table}");
    let report: Value = serde_json::from_str(&well(&[asked.as_slice(), &["--json"]].concat())).unwrap();
    let queue = &report["policies"][0]["queue"];
    let wait = |name: &str| queue["wait"][name]["mean"].as_f64().unwrap();
    assert!(wait("p50") <= wait("p95") && wait("p95") <= wait("p99") && wait("mean") > 0.0);
    assert_eq!(queue["unplaced"]["mean"], 0.0);
    assert!(report["policies"][0]["profiles"][0]["wait"]["mean"]["mean"].is_number());
}

const TRACE: &str = r#"{"id":"a","arrival":0,"duration":60,"slices":[{"profile":"3g.40gb","count":2}],"pods":1}
{"id":7,"arrival":1.5,"slices":[{"profile":"1g.10gb"}]}

{"id":"c","arrival":2,"duration":10,"slices":[{"profile":"7g.80gb","count":1}],"pods":2}
{"id":"d","arrival":70,"duration":10,"slices":[{"profile":"7g.80gb","count":1}]}
"#;

#[test]
fn a_trace_is_replayed_and_every_decision_told() {
    let folder = tempfile::tempdir().unwrap();
    let trace = file(&folder, "trace.jsonl", TRACE);
    let told = folder.path().join("decisions.jsonl");
    let asked = ["--gpus", "2", "--trace", &trace, "--decisions", told.to_str().unwrap(), "--json"];
    let report: Value = serde_json::from_str(&well(&asked)).unwrap();
    assert_eq!(report["policies"][0]["requestAcceptance"]["mean"], 0.75, "two whole GPUs are not free");
    let lines = fs::read_to_string(&told).unwrap();
    let lines: Vec<Value> = lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let ids: Vec<&str> = lines.iter().map(|line| line["id"].as_str().unwrap()).collect();
    assert_eq!(ids, ["a", "a", "7", "d"]);
    assert_eq!((&lines[0]["until"], &lines[2]["until"]), (&Value::from(60.0), &Value::Null));
}

const UNITS: [(&str, u64); 6] =
    [("1g.10gb", 1), ("1g.20gb", 2), ("2g.20gb", 2), ("3g.40gb", 4), ("4g.40gb", 4), ("7g.80gb", 8)];

/// Replays decisions with nothing but what they say: no two slices overlap, and each is where it may start.
fn judge(decisions: &str) -> (usize, usize) {
    let starts = |profile: &str, start: u64| match profile {
        "1g.10gb" => start < 7,
        "1g.20gb" => start.is_multiple_of(2) && start < 8,
        "2g.20gb" => start.is_multiple_of(2) && start < 6,
        "3g.40gb" => start.is_multiple_of(4) && start < 8,
        _ => start == 0,
    };
    let lines: Vec<Value> = decisions.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut there: BTreeMap<(String, u64), (u64, u64, u64, f64)> = BTreeMap::new();
    let (mut placed, mut moved) = (0, 0);
    for step in lines.chunk_by(|a, b| a["time"] == b["time"] && a["for"] == b["for"]) {
        let now = step[0]["time"].as_f64().unwrap();
        there.retain(|_, (.., until)| *until > now);
        let key = |line: &Value| (line["id"].as_str().unwrap().to_owned(), line["slice"].as_u64().unwrap());
        for line in step.iter().filter(|line| line["moved"] == true) {
            assert!(there.remove(&key(line)).is_some(), "moved from nowhere: {line}");
            moved += 1;
        }
        for line in step {
            let (profile, start) = (line["profile"].as_str().unwrap(), line["start"].as_u64().unwrap());
            let (_, units) = UNITS.iter().find(|(name, _)| *name == profile).unwrap();
            assert!(starts(profile, start), "{line}");
            let gpu = line["gpu"].as_u64().unwrap();
            let beside = |(other, from, size, _): &(u64, u64, u64, f64)| {
                *other != gpu || from + size <= start || start + units <= *from
            };
            assert!(there.values().all(beside), "overlap: {line}");
            let until = line["until"].as_f64().unwrap_or(f64::INFINITY);
            assert!(there.insert(key(line), (gpu, start, *units, until)).is_none(), "twice: {line}");
            placed += usize::from(line["moved"] == false);
        }
    }
    (placed, moved)
}

#[test]
fn all_decisions_are_legal_by_what_they_say() {
    let folder = tempfile::tempdir().unwrap();
    let told = folder.path().join("decisions.jsonl");
    for policy in ["slicegate", "first-fit", "best-fit", "mfi", "hami", "fgd", "random"] {
        let options =
            ["--policy", policy, "--moves", "2", "--movable", "0.7", "--load", "1.1", "--arrivals", "2000"];
        let asked = [&["--gpus", "8", "--decisions", told.to_str().unwrap()], options.as_slice()].concat();
        well(&asked);
        let (placed, moved) = judge(&fs::read_to_string(&told).unwrap());
        assert!(placed > 1000, "{policy}: {placed}");
        assert_eq!(moved > 0, ["slicegate", "fgd"].contains(&policy), "{policy}");
    }
}

const MIG_NODES: &str = r"apiVersion: v1
kind: List
items:
- apiVersion: slicegate.dev/v1alpha1
  kind: MIGNode
  metadata: {name: gpu-a}
  spec:
    gpus:
    - {uuid: GPU-0, slices: [{profile: 3g.40gb, start: 0, size: 4}]}
    - {uuid: GPU-1, slices: [{profile: 3g.40gb, start: 4, size: 4}]}
    claims:
    - {workload: {namespace: a, name: b, uid: c}, attempt: d, podSet: main, profile: 3g.40gb, slices: 2, pods: 2}
  status:
    models:
    - name: NVIDIA A100-SXM4-80GB
      units: 8
      profiles:
      - {name: 1g.10gb, id: 19, size: 1, starts: [0, 1, 2, 3, 4, 5, 6], maxCount: 7, memoryMiB: 9728}
      - {name: 3g.40gb, id: 9, size: 4, starts: [0, 4], maxCount: 2, memoryMiB: 40192}
      - {name: 7g.80gb, id: 0, size: 8, starts: [0], maxCount: 1, memoryMiB: 81152}
    gpus:
    - {uuid: GPU-0, index: 0, model: NVIDIA A100-SXM4-80GB, migMode: Enabled, health: Healthy}
    - {uuid: GPU-1, index: 1, model: NVIDIA A100-SXM4-80GB, migMode: Enabled, health: Healthy}
";

#[test]
fn what_would_fit_is_said_of_a_clusters_nodes() {
    let folder = tempfile::tempdir().unwrap();
    let nodes = file(&folder, "nodes.yaml", MIG_NODES);
    let fits = |more: &[&str]| {
        let asked = [&["--inventory", &nodes, "--json"], more].concat();
        let answer: Value = serde_json::from_str(&well(&asked)).unwrap();
        let figures = |fit: &Value| ["asItIs", "withMoves", "repacked"].map(|name| fit[name].as_u64());
        answer["fits"].as_array().unwrap().iter().map(figures).collect::<Vec<_>>()
    };
    assert_eq!(fits(&["--fit", "3g.40gb=5"]), [[Some(2), None, Some(2)]]);
    assert_eq!(fits(&["--fit", "7g.80gb=2"]), [[Some(0), None, Some(1)]]);
    assert_eq!(
        fits(&["--fit", "7g.80gb=2", "--moves", "1", "--movable", "1"]),
        [[Some(0), Some(1), Some(1)]]
    );
    let more = fits(&["--fit", "7g.80gb=2", "--fit", "1g.10gb=1", "--gpus", "2", "--model", "A100-80GB"]);
    assert_eq!(more[0][0], Some(2), "two more GPUs");
    let text = well(&["--inventory", &nodes, "--fit", "7g.80gb=2"]);
    assert!(
        text.contains("2 × 7g.80gb do not fit") && text.contains("if everything were packed anew"),
        "{text}"
    );
    assert!(text.starts_with("2 × A100-80GB, 8 of 16 units in use"), "{text}");
}

#[test]
fn an_inventory_may_mix_models_and_a_picture_is_drawn() {
    let folder = tempfile::tempdir().unwrap();
    let rows = "- {model: A100-80GB, gpus: 4, nodes: 2}\n- {model: A30-24GB, gpus: 2}\n";
    let inventory = file(&folder, "inventory.yaml", rows);
    let plot = folder.path().join("plot.svg");
    let asked = ["--inventory", &inventory, "--arrivals", "500", "--plot", plot.to_str().unwrap()];
    let table = well(&[asked.as_slice(), &["--policy", "slicegate", "--policy", "first-fit"]].concat());
    assert!(table.starts_with("8 × A100-80GB, 2 × A30-24GB · "), "{table}");
    assert!(table.contains("4g.24gb") && table.contains("7g.80gb"), "{table}");
    let svg = fs::read_to_string(plot).unwrap();
    assert!(svg.starts_with("<svg ") && svg.contains("first-fit") && !svg.contains("NaN"));
}

#[test]
fn what_cannot_be_used_is_refused_with_file_line_and_reason() {
    let folder = tempfile::tempdir().unwrap();
    let good = r#"{"id":"a","arrival":0,"slices":[{"profile":"1g.10gb"}]}"#;
    let bad = [
        ("nonsense", "column 2: expected ident"),
        (r#"{"id":"b","arrival":-1,"slices":[{"profile":"1g.10gb"}]}"#, "arrival -1 is negative"),
        (
            r#"{"id":"b","arrival":1,"duration":-5,"slices":[{"profile":"1g.10gb"}]}"#,
            "duration -5 is negative",
        ),
        (
            r#"{"id":"b","arrival":1,"slices":[{"profile":"9g.99gb"}]}"#,
            "no GPU has a profile \"9g.99gb\"; there are 1g.10gb,",
        ),
        (r#"{"id":"b","arrival":1,"slices":[]}"#, "nothing is asked for"),
        (r#"{"id":"b","arrival":1,"slices":[{"profile":"1g.10gb","count":0}]}"#, "nothing is asked for"),
        (
            r#"{"id":"b","arrival":1,"slices":[{"profile":"1g.10gb","count":4000000}]}"#,
            "4000000 slices are asked for",
        ),
        (r#"{"id":"b","slices":[{"profile":"1g.10gb"}]}"#, "missing field `arrival`"),
        (r#"{"id":"b","arrival":1,"slice":[]}"#, "unknown field `slice`"),
        (r#"{"id":"a","arrival":1,"slices":[{"profile":"1g.10gb"}]}"#, "id \"a\" is that of line 1, too"),
    ];
    for (line, reason) in bad {
        let trace = file(&folder, "trace.jsonl", &format!("{good}\n\n{line}\n"));
        let said = refused(&["--trace", &trace]);
        assert!(said.starts_with(&format!("{trace}:3: ")) && said.contains(reason), "{said}");
    }
    let empty = file(&folder, "empty.jsonl", "\n");
    assert!(refused(&["--trace", &empty]).ends_with("has no request"));

    let rows = [
        (
            "- {model: A100-80GB, gpus: 4}\n- {model: A100, gpus: 2}\n",
            2,
            "there is no GPU model \"A100\"; use one of A30-24GB",
        ),
        ("- {model: A100-80GB, gpus: 4}\n- {model: A30-24GB, gpus: many}\n", 2, "invalid"),
        ("- {model: A100-80GB, gpus: 4}\n- {gpus: 4}\n", 2, "model"),
        ("- {model: A100-80GB, gpus: 4000000, nodes: 4}\n", 1, "GPUs up to here"),
    ];
    for (text, line, reason) in rows {
        let inventory = file(&folder, "inventory.yaml", text);
        let said = refused(&["--inventory", &inventory]);
        assert!(said.starts_with(&format!("{inventory}:{line}: ")) && said.contains(reason), "{said}");
    }
    let missing = folder.path().join("missing");
    assert!(refused(&["--trace", missing.to_str().unwrap()]).starts_with("cannot read "));
    let none = file(&folder, "none.yaml", "[]\n");
    assert!(refused(&["--inventory", &none]).starts_with("there is no GPU"));
}

#[test]
fn arguments_that_make_no_sense_are_refused() {
    let cases: [(&[&str], &str); 10] = [
        (&["--model", "A100"], "--model: there is no GPU model \"A100\""),
        (&["--gpus", "2", "--gpus", "3", "--model", "A100-80GB"], "one --model for each --gpus"),
        (&["--gpus", "0"], "--gpus"),
        (&["--policy", "best"], "there is no policy \"best\"; use one of slicegate, first-fit"),
        (&["--movable", "2"], "from 0 to 1"),
        (&["--load", "-1"], "--load"),
        (&["--load", "NaN"], "above 0"),
        (&["--distribution", "odd"], "skew-small"),
        (&["--fit", "7g.80gb"], "expected PROFILE=N"),
        (&["--fit", "9g.99gb=1"], "no GPU has a profile \"9g.99gb\""),
    ];
    for (arguments, reason) in cases {
        let said = refused(arguments);
        assert!(said.contains(reason), "{arguments:?}: {said}");
    }
}

#[test]
fn a_result_that_cannot_be_written_is_told() {
    let nowhere = Path::new("nowhere").join("decisions.jsonl");
    let ended = simulate(&small(&["--decisions", nowhere.to_str().unwrap()]));
    assert_eq!(ended.code, 1);
    assert!(ended.err.starts_with("error: cannot write nowhere"), "{}", ended.err);
}
