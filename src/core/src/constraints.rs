//! Which nodes a pod may run on, as kube-scheduler decides it: node selector, required node affinity, taints.

use std::collections::BTreeMap;

/// How a requirement compares (`k8s.io/api/core/v1`, `NodeSelectorOperator`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    /// The label's value is one of the values.
    In,
    /// The label is absent or has none of the values.
    NotIn,
    /// The label is there.
    Exists,
    /// The label is not there.
    DoesNotExist,
    /// The label is an integer greater than the value.
    Gt,
    /// The label is an integer less than the value.
    Lt,
}

/// One comparison of a label, or of a field.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    /// The label's key, or the field's path.
    pub key: String,
    /// How to compare.
    pub operator: Operator,
    /// What to compare with.
    pub values: Vec<String>,
}

impl Requirement {
    fn holds(&self, value: Option<&str>) -> bool {
        let integer = |s: &str| s.parse::<i64>().ok();
        let against = || self.values.first().and_then(|v| integer(v));
        match self.operator {
            Operator::In => value.is_some_and(|v| self.values.iter().any(|w| w == v)),
            Operator::NotIn => !value.is_some_and(|v| self.values.iter().any(|w| w == v)),
            Operator::Exists => value.is_some(),
            Operator::DoesNotExist => value.is_none(),
            Operator::Gt => value.and_then(integer).zip(against()).is_some_and(|(v, w)| v > w),
            Operator::Lt => value.and_then(integer).zip(against()).is_some_and(|(v, w)| v < w),
        }
    }
}

/// A conjunction of requirements on labels and on fields. An empty one matches nothing, as in Kubernetes.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Term {
    /// Requirements on the node's labels.
    pub labels: Vec<Requirement>,
    /// Requirements on the node's fields, of which there is one: `metadata.name`.
    pub fields: Vec<Requirement>,
}

/// What a taint does to pods that do not tolerate it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effect {
    /// New pods stay away.
    NoSchedule,
    /// Pods stay away, if possible.
    PreferNoSchedule,
    /// Running pods leave, too.
    NoExecute,
}

/// A node's taint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Taint {
    /// Its key.
    pub key: String,
    /// Its value; empty when it has none.
    pub value: String,
    /// Its effect.
    pub effect: Effect,
}

/// A pod's toleration.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Toleration {
    /// The taint's key; `None` tolerates every key.
    pub key: Option<String>,
    /// The taint's value; `None` tolerates every value (operator `Exists`).
    pub value: Option<String>,
    /// The taint's effect; `None` tolerates every effect.
    pub effect: Option<Effect>,
}

impl Toleration {
    fn tolerates(&self, taint: &Taint) -> bool {
        self.key.as_ref().is_none_or(|key| *key == taint.key)
            && self.value.as_ref().is_none_or(|value| *value == taint.value)
            && self.effect.is_none_or(|effect| effect == taint.effect)
    }
}

/// Where the pods of a pod set may run: the flavor's node labels and tolerations and the template's own.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Constraints {
    /// Labels that the node must have.
    pub node_selector: BTreeMap<String, String>,
    /// Required node affinity: any one term must hold. `None` when there is none.
    pub affinity: Option<Vec<Term>>,
    /// What the pods tolerate.
    pub tolerations: Vec<Toleration>,
}

/// What of a node the constraints look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Traits {
    /// `metadata.labels`.
    pub labels: BTreeMap<String, String>,
    /// `spec.taints`.
    pub taints: Vec<Taint>,
    /// `spec.unschedulable`: cordoned.
    pub unschedulable: bool,
}

impl Constraints {
    /// Whether the node has the labels that selector and affinity ask for.
    pub fn select(&self, name: &str, node: &Traits) -> bool {
        let label = |key: &str| node.labels.get(key).map(String::as_str);
        self.node_selector.iter().all(|(key, value)| label(key) == Some(value))
            && self.affinity.as_ref().is_none_or(|terms| {
                terms.iter().any(|term| {
                    (!term.labels.is_empty() || !term.fields.is_empty())
                        && term.labels.iter().all(|r| r.holds(label(&r.key)))
                        && term.fields.iter().all(|r| r.holds((r.key == "metadata.name").then_some(name)))
                })
            })
    }

    /// Whether the pods tolerate the node's taints and its being cordoned.
    pub fn tolerate(&self, node: &Traits) -> bool {
        let cordon = node.unschedulable.then(|| Taint {
            key: "node.kubernetes.io/unschedulable".to_owned(),
            value: String::new(),
            effect: Effect::NoSchedule,
        });
        node.taints
            .iter()
            .chain(cordon.as_ref())
            .filter(|taint| taint.effect != Effect::PreferNoSchedule)
            .all(|taint| self.tolerations.iter().any(|t| t.tolerates(taint)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(labels: &[(&str, &str)]) -> Traits {
        Traits {
            labels: labels.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..Traits::default()
        }
    }

    fn requirement(key: &str, operator: Operator, values: &[&str]) -> Requirement {
        Requirement {
            key: key.to_owned(),
            operator,
            values: values.iter().map(|v| (*v).to_owned()).collect(),
        }
    }

    #[test]
    fn requirements_compare_as_kubernetes_does() {
        use Operator::{DoesNotExist, Exists, Gt, In, Lt, NotIn};
        for (operator, values, value, expected) in [
            (In, &["a", "b"][..], Some("b"), true),
            (In, &["a"], Some("c"), false),
            (In, &["a"], None, false),
            (NotIn, &["a"], Some("a"), false),
            (NotIn, &["a"], None, true),
            (Exists, &[], Some(""), true),
            (Exists, &[], None, false),
            (DoesNotExist, &[], None, true),
            (DoesNotExist, &[], Some("x"), false),
            (Gt, &["3"], Some("4"), true),
            (Gt, &["3"], Some("3"), false),
            (Gt, &["3"], Some("many"), false),
            (Lt, &["3"], Some("2"), true),
            (Lt, &["3"], None, false),
        ] {
            assert_eq!(
                requirement("k", operator, values).holds(value),
                expected,
                "{operator:?} {values:?} {value:?}"
            );
        }
    }

    #[test]
    fn selector_and_any_affinity_term_must_hold() {
        let node = node(&[("zone", "a"), ("gpu", "a100")]);
        let mut constraints = Constraints {
            node_selector: [("gpu".to_owned(), "a100".to_owned())].into(),
            affinity: Some(vec![
                Term { labels: vec![requirement("zone", Operator::In, &["b"])], fields: vec![] },
                Term { labels: vec![], fields: vec![requirement("metadata.name", Operator::In, &["n1"])] },
            ]),
            tolerations: vec![],
        };
        assert!(constraints.select("n1", &node));
        assert!(!constraints.select("n2", &node));
        constraints.affinity = Some(vec![Term::default()]);
        assert!(!constraints.select("n1", &node), "an empty term matches nothing");
        constraints.affinity = None;
        constraints.node_selector.insert("zone".to_owned(), "b".to_owned());
        assert!(!constraints.select("n1", &node));
    }

    #[test]
    fn taints_and_cordons_need_a_toleration() {
        let taint = |key: &str, effect| Taint { key: key.to_owned(), value: "v".to_owned(), effect };
        let tolerating = |tolerations| Constraints { tolerations, ..Constraints::default() };
        let tainted = Traits {
            taints: vec![taint("gpu", Effect::NoSchedule), taint("soft", Effect::PreferNoSchedule)],
            ..Traits::default()
        };
        assert!(!tolerating(vec![]).tolerate(&tainted));
        let toleration = |key: Option<&str>, value: Option<&str>, effect| Toleration {
            key: key.map(str::to_owned),
            value: value.map(str::to_owned),
            effect,
        };
        assert!(tolerating(vec![toleration(Some("gpu"), None, None)]).tolerate(&tainted));
        assert!(!tolerating(vec![toleration(Some("gpu"), Some("w"), None)]).tolerate(&tainted));
        assert!(!tolerating(vec![toleration(Some("gpu"), None, Some(Effect::NoExecute))]).tolerate(&tainted));
        assert!(tolerating(vec![toleration(None, None, None)]).tolerate(&tainted));
        let cordoned = Traits { unschedulable: true, ..Traits::default() };
        assert!(!tolerating(vec![]).tolerate(&cordoned));
        assert!(
            tolerating(vec![toleration(Some("node.kubernetes.io/unschedulable"), None, None)])
                .tolerate(&cordoned)
        );
    }
}
