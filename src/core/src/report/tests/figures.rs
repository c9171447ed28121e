//! What is promised, given away and there, in every unit.

use super::*;
use crate::geometry::tests::{a30, a100};

fn owner(queue: &str, local: &str, flavor: &str) -> Owner {
    Owner { queue: queue.into(), local_queue: Some(local.into()), flavors: [flavor.into()].into() }
}

/// Two A30s of which two slices are claimed, one by each of two ClusterQueues of a cohort.
fn halves() -> World {
    let mut n = node("n", "p", &a30(), 2);
    give(&mut n, "w1", &[(0, slice("2g.12gb", 0, 2))]);
    give(&mut n, "w2", &[(1, slice("1g.6gb", 3, 1))]);
    give(&mut n, "stranger", &[(1, slice("1g.6gb", 2, 1))]);
    let mut one = in_cohort(queue("p", &[("1g.6gb", "2"), ("2g.12gb", "1"), ("4g.24gb", "0")]), "c");
    one.lends[0].borrowing_limit = Some("3".into());
    one.lends[1].lending_limit = Some("0".into());
    one.reserved = vec![usage("p", "2g.12gb", "2", "1"), usage("p", "1g.6gb", "0", "0")];
    one.admitted = vec![usage("p", "2g.12gb", "1", "0")];
    one.workloads = Workloads { pending: 3, reserving: 2, admitted: 1 };
    let mut two = in_cohort(queue("p", &[("1g.6gb", "4")]), "c");
    two.reserved = vec![usage("p", "1g.6gb", "1", "0")];
    two.admitted = two.reserved.clone();
    two.workloads = Workloads { pending: 1, reserving: 1, admitted: 1 };
    let mut world = world(vec![n], &[("one", one), ("two", two)]);
    world.owners.insert("w1".into(), owner("one", "local", "p"));
    world.owners.insert("w2".into(), owner("two", "other", "p"));
    world
}

#[test]
fn a_queue_has_its_figures_in_slices_units_and_gib() {
    let report = report_of(&halves(), "one");
    assert_eq!(report.cohort.as_deref(), Some("c"));
    assert_eq!(report.workloads, Workloads { pending: 3, reserving: 2, admitted: 1 });
    let half = row(&report, "2g.12gb");
    let figures =
        Figures { nominal: 1, borrowed: 1, reserved: 2, admitted: 1, claimed: 1, possible: 4, free: Some(2) };
    assert_eq!(half.lent, Lent { figures, borrowing_limit: None, lending_limit: Some(0), nominal_of_all: 1 });
    assert_eq!((half.slice_gib, half.slice_units, half.free_as_it_is), (12, 2, 2));
    let quarter = row(&report, "1g.6gb");
    let figures = Figures { nominal: 2, possible: 8, free: Some(4), ..Figures::default() };
    assert_eq!(
        quarter.lent,
        Lent { figures, borrowing_limit: Some(3), lending_limit: None, nominal_of_all: 6 }
    );
    // 4 units are taken, of 8: two by a 2g, one by a 1g of the other queue, one by a stranger's.
    let whole = row(&report, "4g.24gb");
    assert_eq!(
        (whole.lent.figures.free, whole.free_as_it_is),
        (Some(1), 0),
        "two quarters would have to move"
    );
    let gib = Figures {
        nominal: 24,
        borrowed: 12,
        reserved: 24,
        admitted: 12,
        claimed: 12,
        possible: 48,
        free: Some(24),
    };
    assert_eq!(report.gib, gib);
    let units =
        Figures { nominal: 4, borrowed: 2, reserved: 4, admitted: 2, claimed: 2, possible: 8, free: Some(4) };
    assert_eq!(report.units, units);
    let flavor = &report.flavors[0];
    assert_eq!((&*flavor.name, flavor.nodes, flavor.gpus[&*a30().name]), ("p", 1, 2));
    assert_eq!((flavor.gib, flavor.units, flavor.together), (gib, units, Together::Yes));
}

#[test]
fn a_cohort_has_the_figures_of_its_members_and_its_own() {
    let mut world = halves();
    let own = Cohort { lends: lends("p", &[("1g.6gb", "1")]), parent: Some("top".into()) };
    world.cohorts.insert("c".into(), own);
    let report = report_of(&world, "c");
    assert_eq!(report.queues, ["one".into(), "two".into()]);
    assert_eq!(report.cohort.as_deref(), Some("top"));
    assert_eq!(report.workloads, Workloads { pending: 4, reserving: 3, admitted: 2 });
    let quarter = row(&report, "1g.6gb").lent.figures;
    assert_eq!((quarter.nominal, quarter.reserved, quarter.claimed, quarter.possible), (7, 1, 1, 8));
    assert_eq!(row(&report, "2g.12gb").lent.figures.borrowed, 1);
    assert_eq!(report_of(&world, "top").gib, report.gib);
}

#[test]
fn memory_counts_by_itself_where_it_is_lent() {
    let mut n = node("n", "p", &a30(), 2);
    give(&mut n, "w", &[(0, slice("2g.12gb", 0, 2))]);
    let mut lending = queue("p", &[("memory", "40")]);
    lending.reserved = vec![usage("p", "memory", "18", "2")];
    lending.admitted = vec![usage("p", "memory", "12", "0")];
    let mut world = world(vec![n], &[("q", lending)]);
    world.owners.insert("w".into(), owner("q", "local", "p"));
    let report = report_of(&world, "q");
    let memory = Figures {
        nominal: 40,
        borrowed: 2,
        reserved: 18,
        admitted: 12,
        claimed: 12,
        possible: 48,
        free: Some(36),
    };
    assert_eq!(report.gib, memory);
    assert_eq!(report.flavors[0].memory.unwrap().figures, memory);
    assert_eq!(report.flavors[0].profiles.len(), 5, "all that can be had by memory");
    assert_eq!(row(&report, "2g.12gb").lent.figures.claimed, 1);
    assert_eq!(codes(&report), [""; 0]);
}

#[test]
fn flavors_that_share_nodes_have_their_gpus_once_in_the_sum() {
    let mut world = world(
        vec![node("n", "p", &a30(), 2)],
        &[(
            "q",
            Queue {
                lends: [lends("p", &[("1g.6gb", "4")]), lends("all", &[("2g.12gb", "1")])].concat(),
                ..Queue::default()
            },
        )],
    );
    world.flavors.insert("all".into(), BTreeMap::new());
    let report = report_of(&world, "q");
    assert_eq!(report.flavors.iter().map(|flavor| flavor.gib.possible).collect::<Vec<_>>(), [48, 48]);
    assert_eq!((report.gib.possible, report.units.possible, report.gib.nominal), (48, 8, 36));
}

#[test]
fn a_namespace_has_what_its_local_queues_have_and_what_its_quotas_say() {
    let mut world = halves();
    let mut team = namespace(&["one"], &[("2g.12gb", 2)]);
    let local = LocalQueue {
        queue: "one".into(),
        reserved: vec![usage("p", "2g.12gb", "2", "0"), usage("p", "1g.6gb", "0", "0")],
        admitted: vec![usage("p", "2g.12gb", "1", "0")],
        pending: 5,
    };
    team.local_queues = [("local".into(), local)].into();
    (team.budgets[0].used, team.budgets[0].in_flight) = (1, 1);
    world.namespaces.insert("team".into(), team);
    world.namespaces.insert("other".into(), namespace(&["two"], &[]));
    let report = report_of(&world, "one");
    assert_eq!(report.namespaces.len(), 1);
    let team = &report.namespaces[0];
    assert_eq!(
        (&*team.namespace, &*team.local_queues[0].name, team.local_queues[0].pending),
        ("team", "local", 5)
    );
    let held = Held { reserved: 2, admitted: 1, claimed: 1 };
    assert_eq!(team.local_queues[0].resources, [(Unit::Slices(profile("2g.12gb")), held)].into());
    let budget = &team.budgets[0];
    assert_eq!((&*budget.quota, budget.hard, budget.used, budget.in_flight), ("gpus", 2, 1, 1));
}

#[test]
fn resources_of_no_concern_are_left_out() {
    let mut mixed = queue("p", &[("1g.6gb", "8"), ("1g.10gb", "0")]);
    let cpu = |flavor: &str| Quota {
        flavor: flavor.into(),
        resource: "cpu".into(),
        nominal: "64".into(),
        ..Quota::default()
    };
    mixed.lends.extend([cpu("p"), cpu("cpus")]);
    let report = report_of(&world(vec![node("n", "p", &a30(), 2)], &[("q", mixed)]), "q");
    assert_eq!(report.flavors.len(), 1);
    let rows: Vec<&str> = report.flavors[0].profiles.iter().map(|row| row.profile.as_str()).collect();
    assert_eq!(rows, ["1g.6gb"], "a profile that the GPUs lack and that nobody lends here");
}

#[test]
fn the_nodes_that_a_policy_does_not_allow_do_not_count() {
    use crate::constraints::Constraints;
    let mut lending = queue("p", &[("7g.80gb", "2")]);
    let zone =
        Constraints { node_selector: [("zone".to_owned(), "a".to_owned())].into(), ..Constraints::default() };
    lending.allowed.insert("p".into(), vec![zone]);
    let mut near = node("near", "p", &a100(), 1);
    near.host.as_mut().unwrap().traits.labels.insert("zone".to_owned(), "a".to_owned());
    let mut world = world(vec![near, node("far", "p", &a100(), 1)], &[("q", lending)]);
    world.flavors.insert("p".into(), [("pool".to_owned(), "p".to_owned())].into());
    let report = report_of(&world, "q");
    assert_eq!(row(&report, "7g.80gb").lent.figures.possible, 1);
    assert!(codes(&report).contains(&"NominalExceedsPhysical"));
}
