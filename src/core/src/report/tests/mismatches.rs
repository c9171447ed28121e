//! Each mismatch: when it is there, what it says, and when it is not.

use super::*;
use crate::geometry::tests::{a30, a100};

/// Every profile of an A30, as often as two of them can form it.
const ALL: [(&str, &str); 5] =
    [("1g.6gb", "8"), ("1g.6gb+me", "2"), ("2g.12gb", "4"), ("2g.12gb+me", "2"), ("4g.24gb", "2")];

fn a30s(queues: &[(&str, Queue)]) -> World {
    world(vec![node("n", "p", &a30(), 2)], queues)
}

fn with(quotas: &[(&str, &str)], name: &'static str, nominal: &'static str) -> Queue {
    let quotas: Vec<_> =
        quotas.iter().map(|(n, q)| if *n == name { (*n, nominal) } else { (*n, *q) }).collect();
    queue("p", &quotas)
}

fn message(world: &World, name: &str, code: Code) -> String {
    report_of(world, name).mismatches[&code].clone()
}

#[test]
fn as_much_of_each_as_there_can_be_is_no_mismatch() {
    let world = a30s(&[("q", queue("p", &ALL))]);
    assert_eq!(wrong(&world)["q"], [""; 0]);
    assert_eq!(report_of(&world, "q").flavors[0].together, Together::No, "not all at the same time");
}

#[test]
fn nominal_exceeds_physical() {
    let world = a30s(&[("q", with(&ALL, "1g.6gb", "9"))]);
    assert_eq!(wrong(&world)["q"], ["NominalExceedsPhysical"]);
    assert_eq!(
        message(&world, "q", Code::NominalExceedsPhysical),
        "flavor p: 9 × 1g.6gb promised, 8 possible. Lower nominalQuota to what is possible, or add GPUs."
    );
    let lacking = a30s(&[("q", queue("p", &[&ALL[..], &[("1g.10gb", "1")]].concat()))]);
    assert!(
        message(&lacking, "q", Code::NominalExceedsPhysical)
            .starts_with("flavor p: 1 × 1g.10gb promised, 0 possible.")
    );
    let memory = a30s(&[("q", queue("p", &[("memory", "49")]))]);
    assert!(
        message(&memory, "q", Code::NominalExceedsPhysical)
            .starts_with("flavor p: 49 GiB promised, 48 possible.")
    );
}

#[test]
fn queues_that_share_a_flavor_promise_together() {
    let rest: Vec<_> = ALL.iter().map(|(name, _)| (*name, "1")).collect();
    let other = || with(&rest, "1g.6gb", "4");
    let mut world = a30s(&[("a", with(&rest, "1g.6gb", "5")), ("b", other())]);
    assert_eq!(
        (&wrong(&world)["a"], &wrong(&world)["b"]),
        (&vec!["NominalExceedsPhysical"], &vec!["NominalExceedsPhysical"])
    );
    assert!(
        message(&world, "a", Code::NominalExceedsPhysical)
            .starts_with("flavor p: 9 × 1g.6gb promised by ClusterQueues a, b together, 8 possible."),
    );
    // In one cohort it is the cohort that is overcommitted.
    for name in ["a", "b"] {
        world.queues.get_mut(name).unwrap().cohort = Some("c".into());
    }
    let found = wrong(&world);
    assert_eq!(
        (&found["a"], &found["cohort c"]),
        (&vec!["OvercommittedCohort"], &vec!["OvercommittedCohort"])
    );
    assert!(
        message(&world, "a", Code::OvercommittedCohort)
            .starts_with("Cohort c, flavor p: 9 × 1g.6gb promised, 8 possible.")
    );
    let cohort = message(&world, "c", Code::OvercommittedCohort);
    assert!(
        cohort.starts_with("flavor p: 9 × 1g.6gb promised, 8 possible. Lower the nominalQuota"),
        "{cohort}"
    );
    // Each in a cohort of its own: nobody's alone.
    world.queues.get_mut("b").unwrap().cohort = Some("d".into());
    let found = wrong(&world);
    assert_eq!((&found["a"], &found["cohort c"]), (&vec!["NominalExceedsPhysical"], &vec![]));
    // Below one parent, they are of one.
    for name in ["c", "d"] {
        world.cohorts.insert(name.into(), Cohort { parent: Some("top".into()), ..Cohort::default() });
    }
    let found = wrong(&world);
    assert_eq!((&found["a"], &found["cohort c"]), (&vec!["OvercommittedCohort"], &vec![]));
    assert_eq!(found["cohort top"], ["OvercommittedCohort"]);
}

#[test]
fn what_a_cohort_lends_itself_counts() {
    let mut world = a30s(&[("a", in_cohort(queue("p", &ALL), "c"))]);
    assert_eq!(wrong(&world)["cohort c"], [""; 0]);
    let own = lends("p", &[("4g.24gb", "1")]);
    world.cohorts.insert("c".into(), Cohort { lends: own, parent: None });
    assert!(
        message(&world, "c", Code::OvercommittedCohort)
            .starts_with("flavor p: 3 × 4g.24gb promised, 2 possible.")
    );
    assert_eq!(wrong(&world)["a"], ["OvercommittedCohort"]);
}

#[test]
fn flavors_that_share_gpus_promise_together() {
    let lends = [lends("p", &ALL), lends("all", &[("4g.24gb", "1")])].concat();
    let mut world = a30s(&[("q", Queue { lends, ..Queue::default() })]);
    world.flavors.insert("all".into(), BTreeMap::new());
    assert!(
        message(&world, "q", Code::NominalExceedsPhysical)
            .starts_with("flavors all, p, which share GPUs: 3 × 4g.24gb promised, 2 possible.")
    );
}

#[test]
fn namespace_quota_below_nominal() {
    let mut world = a30s(&[("q", queue("p", &ALL))]);
    world.namespaces.insert("team".into(), namespace(&["q"], &[("1g.6gb", 3)]));
    assert_eq!(wrong(&world)["q"], ["NamespaceQuotaBelowNominal"]);
    assert!(
        message(&world, "q", Code::NamespaceQuotaBelowNominal).starts_with(
            "8 × 1g.6gb lent, and ResourceQuota gpus of namespace team allows 3 × 1g.6gb. Raise"
        ),
    );
    // Two namespaces share what is lent.
    world.namespaces.insert("more".into(), namespace(&["q"], &[("1g.6gb", 4)]));
    assert!(message(&world, "q", Code::NamespaceQuotaBelowNominal).starts_with(
        "8 × 1g.6gb lent, and the ResourceQuotas of namespaces more, team allow 7 × 1g.6gb together."
    ),);
    world.namespaces.insert("more".into(), namespace(&["q"], &[("1g.6gb", 5)]));
    assert_eq!(wrong(&world)["q"], [""; 0], "together they may use all");
    world.namespaces.insert("more".into(), namespace(&["q"], &[]));
    assert_eq!(wrong(&world)["q"], [""; 0], "one may use what it likes");
    world.namespaces.insert("more".into(), namespace(&[], &[("1g.6gb", 0)]));
    assert_eq!(
        wrong(&world)["q"],
        ["NamespaceQuotaBelowNominal"],
        "and one that has no LocalQueue does not count"
    );
    // What counts some of the pods only caps nothing.
    world.namespaces.get_mut(&Name::from("team")).unwrap().budgets[0].scoped = true;
    assert_eq!(wrong(&world)["q"], [""; 0]);
}

#[test]
fn namespace_quota_of_memory_below_the_slices_that_are_lent() {
    let mut world = a30s(&[("q", queue("p", &ALL))]);
    world.namespaces.insert("team".into(), namespace(&["q"], &[("memory", 47)]));
    let message = message(&world, "q", Code::NamespaceQuotaBelowNominal);
    assert!(
        message.contains("lent, which take 48 GiB, and ResourceQuota gpus of namespace team allows 47 GiB."),
        "{message}"
    );
    world.namespaces.insert("team".into(), namespace(&["q"], &[("memory", 48)]));
    assert_eq!(wrong(&world)["q"], [""; 0]);
    let mut world = a30s(&[("q", queue("p", &[("memory", "48")]))]);
    world.namespaces.insert("team".into(), namespace(&["q"], &[("memory", 24)]));
    assert_eq!(wrong(&world)["q"], ["NamespaceQuotaBelowNominal"]);
}

#[test]
fn namespace_quota_above_nominal() {
    let mut world = a30s(&[("q", queue("p", &ALL))]);
    world.namespaces.insert("team".into(), namespace(&["q"], &[("4g.24gb", 3)]));
    assert_eq!(wrong(&world)["q"], ["NamespaceQuotaAboveNominal"]);
    assert!(message(&world, "q", Code::NamespaceQuotaAboveNominal).starts_with(
        "ResourceQuota gpus of namespace team allows 3 × 4g.24gb, and ClusterQueue q can give it 2 at most. Lower"
    ));
    // Several namespaces may have more together: who comes first is served.
    world.namespaces.insert("team".into(), namespace(&["q"], &[("4g.24gb", 2)]));
    world.namespaces.insert("more".into(), namespace(&["q"], &[("4g.24gb", 2)]));
    assert_eq!(wrong(&world)["q"], [""; 0]);
    // A profile that no ClusterQueue of the namespace lends.
    world.namespaces.insert("more".into(), namespace(&["q"], &[("1g.10gb", 1)]));
    assert!(
        message(&world, "q", Code::NamespaceQuotaAboveNominal)
            .contains("allows 1 × 1g.10gb, and ClusterQueue q can give it 0")
    );
    // Memory against slices, and slices against memory.
    world.namespaces.insert("more".into(), namespace(&["q"], &[("memory", 1000)]));
    assert_eq!(wrong(&world)["q"], ["NamespaceQuotaAboveNominal"]);
    let mut world = a30s(&[("q", queue("p", &[("memory", "30")]))]);
    world.namespaces.insert("team".into(), namespace(&["q"], &[("2g.12gb", 2)]));
    assert_eq!(wrong(&world)["q"], [""; 0]);
    world.namespaces.insert("team".into(), namespace(&["q"], &[("2g.12gb", 3)]));
    assert!(
        message(&world, "q", Code::NamespaceQuotaAboveNominal)
            .contains("allows 3 × 2g.12gb, and ClusterQueue q can give it 2")
    );
}

#[test]
fn what_can_be_borrowed_is_not_above() {
    let rest: Vec<_> = ALL.iter().map(|(name, _)| (*name, "1")).collect();
    let mut world =
        a30s(&[("a", in_cohort(queue("p", &rest), "c")), ("b", in_cohort(queue("p", &rest), "c"))]);
    world.namespaces.insert("team".into(), namespace(&["a"], &[("4g.24gb", 2)]));
    assert_eq!(wrong(&world)["a"], [""; 0]);
    for quota in &mut world.queues.get_mut(&Name::from("a")).unwrap().lends {
        quota.borrowing_limit = Some("0".into());
    }
    assert_eq!(wrong(&world)["a"], ["NamespaceQuotaAboveNominal"]);
    // Two LocalQueues give what both ClusterQueues can.
    world.namespaces.insert("team".into(), namespace(&["a", "b"], &[("4g.24gb", 3)]));
    assert_eq!(wrong(&world)["a"], [""; 0]);
    world.namespaces.insert("team".into(), namespace(&["a", "b"], &[("4g.24gb", 4)]));
    assert!(
        message(&world, "b", Code::NamespaceQuotaAboveNominal)
            .contains("ClusterQueues a, b can give it 3 at most")
    );
}

#[test]
fn profile_not_covered() {
    let world = a30s(&[(
        "q",
        queue("p", &[("1g.6gb", "8"), ("1g.6gb+me", "2"), ("2g.12gb", "4"), ("4g.24gb", "0")]),
    )]);
    assert_eq!(
        message(&world, "q", Code::ProfileNotCovered),
        "flavor p: its GPUs offer the profiles 2g.12gb+me, 4g.24gb, which no ClusterQueue lends. Give them a nominalQuota in a \
         ClusterQueue (coveredResources), if somebody is to use them."
    );
    // Another ClusterQueue does, in the same flavor or in another of the same nodes.
    let mut world = a30s(&[("q", with(&ALL, "4g.24gb", "0")), ("r", queue("all", &[("4g.24gb", "1")]))]);
    world.flavors.insert("all".into(), BTreeMap::new());
    assert_eq!(wrong(&world)["q"], [""; 0]);
    // Memory pays for every profile, but not where profiles need quota beside it.
    assert_eq!(wrong(&a30s(&[("q", queue("p", &[("memory", "48")]))]))["q"], [""; 0]);
    assert_eq!(
        wrong(&a30s(&[("q", queue("p", &[("memory", "48"), ("1g.6gb", "8")]))]))["q"],
        ["ProfileNotCovered"]
    );
}

#[test]
fn flavor_without_nodes() {
    let mut world = a30s(&[("q", queue("gone", &[("1g.6gb", "8")]))]);
    assert_eq!(
        wrong(&world)["q"],
        ["FlavorWithoutNodes"],
        "and what is promised there is no mismatch besides"
    );
    let says = |world: &World| message(world, "q", Code::FlavorWithoutNodes);
    assert!(says(&world).starts_with("flavor gone: there is no ResourceFlavor of that name."));
    world.flavors.insert("gone".into(), [("pool".to_owned(), "none".to_owned())].into());
    assert!(says(&world).starts_with("flavor gone: no node has the labels pool=none."));
    let mut bare = node("m", "none", &a30(), 1);
    bare.mig = None;
    world.nodes.insert("m".into(), Arc::new(bare));
    assert!(says(&world).starts_with("flavor gone: no node with its labels has a GPU with MIG mode on."));
    let mut zero = queue("gone", &[("1g.6gb", "0")]);
    zero.lends.extend(lends("p", &ALL));
    assert_eq!(wrong(&a30s(&[("q", zero)]))["q"], [""; 0], "nothing is lent there");
}

#[test]
fn memory_unit_mismatch() {
    let says = |memory: &str| {
        let world = a30s(&[("q", queue("p", &[("memory", memory)]))]);
        assert_eq!(wrong(&world)["q"], ["MemoryUnitMismatch"], "{memory}");
        message(&world, "q", Code::MemoryUnitMismatch)
    };
    assert!(says("49152").starts_with(
        "nominalQuota 49152 of slicegate.dev/gpu-memory in flavor p, and all GPUs of the cluster have 48 GiB. slicegate.dev/gpu-memory is \
         counted in whole GiB"
    ));
    assert!(
        says("48Gi")
            .contains("nominalQuota 48Gi of slicegate.dev/gpu-memory in flavor p has a suffix of bytes")
    );
    assert!(says("24500m").contains("is no whole number"));
    // Slices and memory that do not go together.
    let both = |memory: &str| {
        wrong(&a30s(&[("q", queue("p", &[&ALL[..], &[("memory", memory)]].concat()))]))["q"].clone()
    };
    assert_eq!(both("48"), [""; 0]);
    assert_eq!(both("47"), ["MemoryUnitMismatch"]);
    let few = a30s(&[("q", queue("p", &[("1g.6gb", "1"), ("memory", "12")]))]);
    let few = message(&few, "q", Code::MemoryUnitMismatch);
    assert!(
        few.starts_with(
            "flavor p: 12 of slicegate.dev/gpu-memory are lent, and all slices lent beside them take 6 GiB."
        ),
        "{few}"
    );
    // A ResourceQuota in MiB.
    let mut world = a30s(&[("q", queue("p", &[("memory", "48")]))]);
    world.namespaces.insert("team".into(), namespace(&["q"], &[("memory", 24_576)]));
    assert_eq!(wrong(&world)["q"], ["MemoryUnitMismatch"]);
    assert!(message(&world, "q", Code::MemoryUnitMismatch).starts_with(
        "ResourceQuota gpus of namespace team allows 24576, and all GPUs of the cluster have 48 GiB."
    ));
}

#[test]
fn an_unreadable_quota_is_named_and_nobody_else_suffers() {
    let world = a30s(&[("bad", with(&ALL, "1g.6gb", "lots")), ("good", queue("p", &[("1g.6gb", "8")]))]);
    let found = wrong(&world);
    assert_eq!(found["bad"], ["UnreadableQuota"]);
    assert!(
        message(&world, "bad", Code::UnreadableQuota)
            .starts_with("nominalQuota lots of nvidia.com/mig-1g.6gb in flavor p is no number.")
    );
    assert_eq!(found["good"], [""; 0]);
    assert_eq!(
        row(&report_of(&world, "bad"), "1g.6gb").lent.figures.nominal,
        0,
        "never more than can be read"
    );
}

#[test]
fn a_queue_that_lends_nothing_of_mig() {
    let cpus = Quota { flavor: "p".into(), resource: "cpu".into(), nominal: "64".into(), ..Quota::default() };
    let mut lending = Queue { lends: vec![cpus], checked: true, ..Queue::default() };
    assert_eq!(wrong(&a30s(&[("q", lending.clone())]))["q"], ["NoMIGResource"]);
    lending.checked = false;
    let report = report_of(&a30s(&[("q", lending)]), "q");
    assert_eq!((codes(&report), report.flavors), (vec![], vec![]), "it is none of ours");
}

#[test]
fn messages_have_no_figure_that_changes_with_what_runs() {
    let mut n = node("n", "p", &a100(), 1);
    let idle = world(vec![n.clone()], &[("q", queue("p", &[("1g.10gb", "8")]))]);
    give(&mut n, "w", &[(0, slice("1g.10gb", 0, 1)), (0, slice("3g.40gb", 4, 4))]);
    let mut lending = queue("p", &[("1g.10gb", "8")]);
    lending.reserved = vec![usage("p", "1g.10gb", "2", "0")];
    let mut busy = world(vec![n], &[("q", lending)]);
    busy.owners.insert("w".into(), Owner { queue: "q".into(), ..Owner::default() });
    let (idle, busy) = (report_of(&idle, "q"), report_of(&busy, "q"));
    assert_ne!(idle.gib, busy.gib);
    assert_eq!(idle.mismatches, busy.mismatches);
    assert_eq!(codes(&idle), ["NominalExceedsPhysical", "ProfileNotCovered"]);
}
