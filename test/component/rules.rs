//! The recording rules for Prometheus, as far as names and labels go; `hack/prometheus/check` tests what they compute.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;

use prometheus::core::Collector;
use serde_json::Value;
use slicegate::controller::chargeback::Chargeback;

use crate::repository;

/// The labels of each metric that the controller counts for chargeback.
fn metrics() -> BTreeMap<String, BTreeSet<String>> {
    let chargeback = Chargeback::new().unwrap();
    let labels = |desc: &prometheus::core::Desc| desc.variable_labels.iter().cloned().collect();
    chargeback.desc().into_iter().map(|desc| (desc.fq_name.clone(), labels(desc))).collect()
}

fn rules() -> String {
    fs::read_to_string(repository("config/prometheus/rules.yaml")).unwrap()
}

/// What is wrong with a PrometheusRule.
fn faults(yaml: &str) -> Vec<String> {
    let document: Value = serde_saphyr::from_str(yaml).unwrap();
    let groups = document["spec"]["groups"].as_array().unwrap();
    let (metrics, mut recorded, mut used, mut faults) =
        (metrics(), BTreeSet::new(), BTreeSet::new(), Vec::new());
    for rule in groups.iter().flat_map(|group| group["rules"].as_array().unwrap()) {
        let (record, expr) = (rule["record"].as_str().unwrap(), rule["expr"].as_str().unwrap());
        let words = words(expr);
        for word in words.iter().filter(|word| word.starts_with("slicegate")) {
            if metrics.contains_key(*word) {
                used.insert((*word).to_owned());
            } else if !recorded.contains(*word) {
                faults.push(format!("{record}: nobody counts or records {word} before"));
            }
        }
        let all: BTreeSet<&str> = metrics.values().flatten().map(String::as_str).collect();
        let clauses = ["by (", "without ("].into_iter().flat_map(|clause| expr.split(clause).skip(1));
        for label in clauses.filter_map(|rest| rest.split_once(')')).flat_map(|(list, _)| list.split(", ")) {
            if !all.contains(label) {
                faults.push(format!("{record}: there is no label {label}"));
            }
        }
        if !recorded.insert(record) {
            faults.push(format!("{record} is recorded twice"));
        }
    }
    faults.extend(metrics.keys().filter(|m| !used.contains(*m)).map(|m| format!("no rule is about {m}")));
    faults
}

/// Names in an expression.
fn words(expr: &str) -> Vec<&str> {
    let part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | ':');
    expr.split(|c| !part(c)).filter(|word| !word.is_empty()).collect()
}

#[test]
fn the_rules_are_about_what_the_controller_counts() {
    assert_eq!(faults(&rules()), [""; 0]);
    assert!(rules().matches("record:").count() >= 9);
}

#[test]
fn a_slip_in_a_rule_is_found() {
    let slips = [
        (
            "(slicegate_slice_seconds_total[1d])",
            "(slicegate_slices_seconds_total[1d])",
            "slicegate_slices_seconds_total",
        ),
        (
            "(slicegate:slice_hours:increase1h[",
            "(slicegate:slice_hours:increase1m[",
            "slicegate:slice_hours:increase1m",
        ),
        ("by (namespace, local_queue,", "by (namespace, queue,", "no label queue"),
        ("without (state)", "without (status)", "no label status"),
        ("slicegate_slice_memory_mib_seconds_total", "slicegate_slice_seconds_total", "no rule is about"),
    ];
    for (right, wrong, said) in slips {
        assert!(rules().contains(right), "{right}");
        let faults = faults(&rules().replace(right, wrong));
        assert!(faults.iter().any(|fault| fault.contains(said)), "{wrong}: {faults:?}");
    }
}

#[test]
fn a_scrape_leaves_the_namespace_as_it_is() {
    let monitor = fs::read_to_string(repository("config/prometheus/podmonitor.yaml")).unwrap();
    let monitor: Value = serde_saphyr::from_str(&monitor).unwrap();
    assert!(metrics().values().all(|labels| labels.contains("namespace")));
    // Prometheus would put the namespace of the pod that it asks in the place of the workload's.
    assert_eq!(monitor["spec"]["podMetricsEndpoints"][0]["honorLabels"], true);
}
