//! Every story without a fault, and with every single one.

use std::collections::BTreeMap;

use super::faults::Fault;
use super::stories;
use super::story::{Course, How, Story};

const SEED: u64 = 1;

fn reference(story: &Story) -> Course {
    story.tell(How { seed: SEED, logged: true, ..How::default() })
}

#[test]
fn without_faults_every_story_ends_as_it_should() {
    let mut wrong = Vec::new();
    for story in stories::all() {
        let course = reference(&story);
        println!("{}: {:?} {}", story.name, course.counts, course.writes);
        if course.breach.is_some() || course.end != story.ends {
            wrong.push(format!("{}\n{}\n{:?}\n{}", story.name, course.log.join("\n"), course.breach, course.end));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n\n"));
}

/// What is wrong with a course, if something is.
fn fault_of(story: &Story, course: &Course) -> Option<String> {
    let end = || (course.end != story.ends).then(|| format!("L2: it ends with {}", course.end));
    course.breach.clone().or_else(end)
}

#[test]
fn explore() {
    let mut all = 0;
    let wanted = std::env::var("SIM").unwrap_or_default();
    let verbose = std::env::var("FAULT").ok();
    for story in stories::all().into_iter().filter(|s| s.name.contains(&wanted)) {
        if let Some(fault) = &verbose {
            let fault: Fault = fault.parse().unwrap();
            let course = story.tell(How { seed: SEED, logged: true, fault: Some(fault), ..How::default() });
            println!("{}\n{:?}\n{}", course.log.join("\n"), course.breach, course.end);
            continue;
        }
        let faults = Fault::all(reference(&story).counts);
        let mut wrong: BTreeMap<String, Vec<Fault>> = BTreeMap::new();
        for fault in &faults {
            let course = story.tell(How { seed: SEED, fault: Some(*fault), ..How::default() });
            if let Some(what) = fault_of(&story, &course) {
                wrong.entry(what).or_default().push(*fault);
            }
        }
        all += faults.len();
        println!("== {}: {} plans, {} wrong", story.name, faults.len(), wrong.values().map(Vec::len).sum::<usize>());
        for (what, faults) in wrong {
            let some: Vec<String> = faults.iter().take(4).map(ToString::to_string).collect();
            println!("   {} × {what}\n      {}", faults.len(), some.join(" "));
        }
    }
    println!("{all} plans");
}
