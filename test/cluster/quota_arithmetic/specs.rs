//! Pods as people write them and as nobody would, all of which the API server takes.

use k8s_openapi::api::core::v1::PodSpec;
use serde_json::{Map, Value, json};

use crate::conformance::dice::Dice;

/// What a RuntimeClass [`HEAVY`] adds to each pod.
pub const OVERHEAD: [(&str, &str); 2] = [("cpu", "250m"), ("memory", "120Mi")];
pub const HEAVY: &str = "heavy";
/// The most that any pod asks for is less than what the pod as a whole may have, and than the limits that a LimitRange sets.
const CPU: [&str; 9] = ["100m", "0.25", "1", "1500m", "2", "0.5", "1.25", "0", FINE];
/// Finer than the API server keeps it.
const FINE: &str = "100200u";
const MEMORY: [&str; 9] = ["64Mi", "100M", "0.5Gi", "1500Ki", "1e8", "128974848", "1Gi", "0", "1E8"];
const DISK: [&str; 3] = ["1Gi", "500M", "2e9"];
const PROFILES: [&str; 3] = ["nvidia.com/mig-1g.10gb", "nvidia.com/mig-1g.10gb.me", "nvidia.com/mig-3g.40gb"];

/// The spec of one pod. A gate keeps it from running.
pub fn spec(dice: &mut Dice) -> PodSpec {
    let style = dice.pick(&[
        Style::Full,
        Style::Full,
        Style::Mixed,
        Style::Mixed,
        Style::Guaranteed,
        Style::Bare,
        Style::Zero,
    ]);
    let containers: Vec<Value> =
        (0..=dice.below(3)).map(|i| container(dice, style, &format!("c{i}"))).collect();
    let init: Vec<Value> = (0..dice.below(4))
        .map(|i| {
            let mut container = container(dice, style, &format!("i{i}"));
            if dice.percent(50) {
                container["restartPolicy"] = json!("Always");
            }
            container
        })
        .collect();
    let mut spec = json!({
        "schedulingGates": [{"name": "example.com/never"}],
        "terminationGracePeriodSeconds": 0,
        "containers": containers,
        "initContainers": init,
    });
    if dice.percent(25) {
        spec["runtimeClassName"] = json!(HEAVY);
    }
    if dice.percent(30) {
        spec["activeDeadlineSeconds"] = json!(600);
    }
    if dice.percent(60) {
        spec["priorityClassName"] = json!(dice.pick(&["high", "medium", "low"]));
    }
    if dice.percent(40) {
        spec["affinity"] = affinity(dice);
    }
    if dice.percent(20) && style != Style::Bare {
        spec["resources"] = whole(dice, style);
        // The API server sums these up before it rounds them, and refuses what it has filled in itself.
        spec = serde_json::from_str(&spec.to_string().replace(FINE, "101m")).unwrap();
    }
    serde_json::from_value(spec).unwrap()
}

/// What containers say of cpu and memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Style {
    /// Requests and limits of both.
    Full,
    /// The same, and they are equal.
    Guaranteed,
    /// Of each this or that, or nothing.
    Mixed,
    /// Nothing: best effort.
    Bare,
    /// Requests and limits of 0, to which no overhead is added.
    Zero,
}

fn container(dice: &mut Dice, style: Style, name: &str) -> Value {
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for (resource, some, most) in [("cpu", &CPU, "4"), ("memory", &MEMORY, "4Gi")] {
        let amount = if style == Style::Zero { json!("0") } else { json!(dice.pick(some)) };
        let how = match style {
            Style::Bare => 0,
            Style::Full => 3,
            Style::Guaranteed | Style::Zero => 4,
            Style::Mixed => dice.below(5),
        };
        if matches!(how, 1 | 3 | 4) {
            requests.insert(resource.to_owned(), amount.clone());
        }
        if how >= 2 {
            limits.insert(resource.to_owned(), if how == 3 { json!(most) } else { amount });
        }
    }
    let computes =
        ["cpu", "memory"].iter().any(|name| requests.contains_key(*name) || limits.contains_key(*name));
    if dice.percent(30) {
        requests.insert("ephemeral-storage".to_owned(), json!(dice.pick(&DISK)));
    }
    if dice.percent(30) {
        limits.insert("ephemeral-storage".to_owned(), json!("4Gi"));
    }
    let mut devices: Vec<(&str, Value)> = Vec::new();
    if dice.percent(60) {
        devices.push((dice.pick(&PROFILES), json!(1 + dice.below(3))));
    }
    if dice.percent(20) {
        devices.push((PROFILES[2], json!("1")));
    }
    if dice.percent(25) {
        devices.push(("example.com/fpga", json!(dice.below(3))));
    }
    if computes && dice.percent(20) {
        devices.push(("hugepages-2Mi", json!(dice.pick(&["4Mi", "64Mi"]))));
    }
    // Of devices both are the same, and the limit is there.
    for (resource, amount) in devices {
        if dice.percent(30) {
            requests.insert(resource.to_owned(), amount.clone());
        } else {
            requests.remove(resource);
        }
        limits.insert(resource.to_owned(), amount);
    }
    json!({"name": name, "image": "example.com/none", "resources": {"requests": requests, "limits": limits}})
}

/// What a pod asks for as a whole: more than its containers do together.
fn whole(dice: &mut Dice, style: Style) -> Value {
    let (mut requests, mut limits) = (Map::new(), Map::new());
    for (resource, amount, most) in [("cpu", "20", "24"), ("memory", "40Gi", "48Gi")] {
        match dice.below(4) {
            0 => _ = requests.insert(resource.to_owned(), json!(amount)),
            1 => _ = limits.insert(resource.to_owned(), json!(most)),
            2 => {
                requests.insert(resource.to_owned(), json!(amount));
                limits.insert(resource.to_owned(), json!(most));
            }
            _ => {}
        }
    }
    if dice.percent(30) {
        requests.insert("cpu".to_owned(), json!("20"));
        for list in [&mut requests, &mut limits] {
            list.insert("hugepages-2Mi".to_owned(), json!("1Gi"));
        }
        limits.remove("cpu");
    }
    if style == Style::Mixed {
        // Else the API server fills in the sum of what containers say themselves, and refuses the pod once a LimitRange adds to it.
        for (resource, amount) in [("cpu", "20"), ("memory", "40Gi")] {
            requests.insert(resource.to_owned(), json!(amount));
        }
    }
    json!({"requests": requests, "limits": limits})
}

/// Affinity to pods, of this namespace or of others.
fn affinity(dice: &mut Dice) -> Value {
    let mut term =
        json!({"topologyKey": "kubernetes.io/hostname", "labelSelector": {"matchLabels": {"app": "x"}}});
    match dice.below(3) {
        0 => term["namespaces"] = json!(["elsewhere"]),
        1 => term["namespaceSelector"] = json!({}),
        _ => {}
    }
    let kind = dice.pick(&["podAffinity", "podAntiAffinity"]);
    if dice.percent(50) {
        json!({kind: {"requiredDuringSchedulingIgnoredDuringExecution": [term]}})
    } else {
        let preferred = json!({"weight": 1, "podAffinityTerm": term});
        json!({kind: {"preferredDuringSchedulingIgnoredDuringExecution": [preferred]}})
    }
}
