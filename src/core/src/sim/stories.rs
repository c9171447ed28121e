//! The stories, each named after what it is about in the contract with Kueue.

use super::story::{Do, Story, When, job, pod_of};
use crate::geometry::tests::{a30, a100};
use crate::workload::CheckState;

pub fn one_job() -> Story {
    Story {
        name: "one-job",
        quota: 1,
        nodes: vec![vec![a100()]],
        jobs: vec![job("train", "1g.10gb")],
        steps: vec![(When::Now, Do::Submit("train")), (When::IsDone("train"), Do::Nothing)],
        ends: "train finished: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

/// Quota for both, room for one.
pub fn two_compete() -> Story {
    Story {
        name: "two-compete",
        quota: 2,
        nodes: vec![vec![a30()]],
        jobs: vec![job("first", "4g.24gb").takes(6), job("second", "4g.24gb").takes(6)],
        steps: vec![
            (When::Now, Do::Submit("first")),
            (When::Now, Do::Submit("second")),
            (When::IsDone("first"), Do::Nothing),
            (When::IsDone("second"), Do::Nothing),
        ],
        ends: "first finished: 0 run, 0 wait, 0 claimed; second finished: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

pub fn preemption() -> Story {
    Story {
        name: "preemption",
        quota: 1,
        nodes: vec![vec![a30()]],
        jobs: vec![job("low", "4g.24gb").service(), job("high", "2g.12gb").priority(10).takes(5)],
        steps: vec![
            (When::Now, Do::Submit("low")),
            (When::Run("low", 1), Do::Submit("high")),
            (When::IsDone("high"), Do::Nothing),
            (When::Run("low", 1), Do::Nothing),
        ],
        ends: "high finished: 0 run, 0 wait, 0 claimed; low admitted, Ready: 1 run, 0 wait, 1 claimed; 1 slices",
    }
}

pub fn gang_on_several_nodes() -> Story {
    Story {
        name: "gang-on-several-nodes",
        quota: 3,
        nodes: vec![vec![a30()], vec![a30()]],
        jobs: vec![job("gang", "2g.12gb").pods(3).takes(5)],
        steps: vec![(When::Now, Do::Submit("gang")), (When::IsDone("gang"), Do::Nothing)],
        ends: "gang finished: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

/// Pods that fail are followed by others, which take their claims.
pub fn retried_pods() -> Story {
    Story {
        name: "retried-pods",
        quota: 2,
        nodes: vec![vec![a30()], vec![a30()]],
        jobs: vec![job("train", "4g.24gb").pods(2).fails(2).takes(4)],
        steps: vec![(When::Now, Do::Submit("train")), (When::IsDone("train"), Do::Nothing)],
        ends: "train finished: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

pub fn eviction_while_creating() -> Story {
    Story {
        name: "eviction-while-creating",
        quota: 1,
        nodes: vec![vec![a30()]],
        jobs: vec![job("low", "1g.6gb").takes(4), job("high", "4g.24gb").priority(10).takes(4)],
        steps: vec![
            (When::Now, Do::Submit("low")),
            (When::NvmlWorks, Do::Submit("high")),
            (When::IsDone("high"), Do::Nothing),
            (When::IsDone("low"), Do::Nothing),
        ],
        ends: "high finished: 0 run, 0 wait, 0 claimed; low finished: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

/// Quota goes and comes back while our check says Ready and another is awaited.
pub fn hold_and_resume() -> Story {
    Story {
        name: "hold-and-resume",
        quota: 1,
        nodes: vec![vec![a30()]],
        jobs: vec![job("train", "2g.12gb").with_others().takes(4)],
        steps: vec![
            (When::Now, Do::Submit("train")),
            (When::Says("train", CheckState::Ready), Do::HoldQueue),
            (When::HasNoQuota("train"), Do::ResumeQueue),
            (When::HasQuota("train"), Do::HoldQueue),
            (When::HasNoQuota("train"), Do::Nothing),
            (When::Later(5), Do::ResumeQueue),
            (When::HasQuota("train"), Do::Pass("train")),
            (When::IsDone("train"), Do::Nothing),
        ],
        ends: "train finished: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

pub fn node_lost() -> Story {
    Story {
        name: "node-lost",
        quota: 2,
        nodes: vec![vec![a30()], vec![a30()], vec![a30()]],
        jobs: vec![job("service", "4g.24gb").pods(2).service()],
        steps: vec![
            (When::Now, Do::Submit("service")),
            (When::Run("service", 2), Do::PowerOffUnder("service")),
            (When::Later(30), Do::RemoveDead),
            (When::Run("service", 2), Do::Nothing),
        ],
        ends: "service admitted, Ready: 2 run, 0 wait, 2 claimed; 2 slices",
    }
}

pub fn agent_restart_with_running_pods() -> Story {
    Story {
        name: "agent-restart-with-running-pods",
        quota: 2,
        nodes: vec![vec![a30()]],
        jobs: vec![job("service", "2g.12gb").service(), job("train", "2g.12gb").takes(4)],
        steps: vec![
            (When::Now, Do::Submit("service")),
            (When::Run("service", 1), Do::RestartAgent("n0")),
            (When::Now, Do::Submit("train")),
            (When::IsDone("train"), Do::RestartController),
            (When::Run("service", 1), Do::Nothing),
        ],
        ends: "service admitted, Ready: 1 run, 0 wait, 1 claimed; train finished: 0 run, 0 wait, 0 claimed; 1 slices",
    }
}

pub fn elastic_up() -> Story {
    Story {
        name: "elastic-up",
        quota: 2,
        nodes: vec![vec![a30()], vec![a30()]],
        jobs: vec![job("service", "4g.24gb").service().elastic()],
        steps: vec![
            (When::Now, Do::Submit("service")),
            (When::Run("service", 1), Do::Scale("service", 2)),
            (When::Run("service", 2), Do::Nothing),
        ],
        ends: "service admitted, Ready: 2 run, 0 wait, 2 claimed; 2 slices",
    }
}

/// What is given back goes to another.
pub fn elastic_down() -> Story {
    Story {
        name: "elastic-down",
        quota: 3,
        nodes: vec![vec![a30()], vec![a30()]],
        jobs: vec![job("service", "4g.24gb").pods(2).service().elastic(), job("train", "4g.24gb").takes(4)],
        steps: vec![
            (When::Now, Do::Submit("service")),
            (When::Run("service", 2), Do::Scale("service", 1)),
            (When::Now, Do::Submit("train")),
            (When::IsDone("train"), Do::Nothing),
        ],
        ends: "service admitted, Ready: 1 run, 0 wait, 1 claimed; train finished: 0 run, 0 wait, 0 claimed; 1 slices",
    }
}

/// The last of three pods runs alone, and another job has the room of the others.
pub fn reclaimable_pods() -> Story {
    Story {
        name: "reclaimable-pods",
        quota: 2,
        nodes: vec![vec![a30()], vec![a30()]],
        jobs: vec![
            job("batch", "4g.24gb").pods(2).completions(3).takes(15),
            job("train", "4g.24gb").takes(4),
        ],
        steps: vec![
            (When::Now, Do::Submit("batch")),
            (When::Run("batch", 2), Do::Submit("train")),
            (When::IsDone("train"), Do::Nothing),
            (When::IsDone("batch"), Do::Nothing),
        ],
        ends: "batch finished: 0 run, 0 wait, 0 claimed; train finished: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

pub fn finish_and_reuse() -> Story {
    Story {
        name: "finish-and-reuse",
        quota: 1,
        nodes: vec![vec![a30()]],
        jobs: vec![job("first", "2g.12gb").takes(3), job("second", "2g.12gb").takes(3)],
        steps: vec![
            (When::Now, Do::Submit("first")),
            (When::IsDone("first"), Do::Submit("second")),
            (When::IsDone("second"), Do::Nothing),
        ],
        ends: "first finished: 0 run, 0 wait, 0 claimed; second finished: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

/// The workload is gone before its pods are.
pub fn deletion() -> Story {
    Story {
        name: "deletion",
        quota: 2,
        nodes: vec![vec![a30()]],
        jobs: vec![job("service", "4g.24gb").service(), job("next", "2g.12gb").pods(2).takes(4)],
        steps: vec![
            (When::Now, Do::Submit("service")),
            (When::Run("service", 1), Do::Delete("service")),
            (When::Now, Do::Submit("next")),
            (When::IsDone("next"), Do::Nothing),
        ],
        ends: "next finished: 0 run, 0 wait, 0 claimed; service deleted: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

pub fn preempted_by_a_gang() -> Story {
    Story {
        name: "preempted-by-a-gang",
        quota: 2,
        nodes: vec![vec![a30()], vec![a30()]],
        jobs: vec![
            job("left", "2g.12gb").service(),
            job("right", "4g.24gb").service(),
            job("gang", "4g.24gb").pods(2).priority(10).takes(4),
        ],
        steps: vec![
            (When::Now, Do::Submit("left")),
            (When::Now, Do::Submit("right")),
            (When::Run("left", 1), Do::Nothing),
            (When::Run("right", 1), Do::Submit("gang")),
            (When::IsDone("gang"), Do::Nothing),
            (When::Run("left", 1), Do::Nothing),
            (When::Run("right", 1), Do::Nothing),
        ],
        ends: "gang finished: 0 run, 0 wait, 0 claimed; left admitted, Ready: 1 run, 0 wait, 1 claimed; right admitted, Ready: 1 run, 0 wait, 1 claimed; 2 slices",
    }
}

/// The large one finds no room, is queued again, and gets it when the small ones are gone.
pub fn fragmentation() -> Story {
    Story {
        name: "fragmentation",
        quota: 4,
        nodes: vec![vec![a30()]],
        jobs: vec![job("small", "1g.6gb").service(), job("large", "4g.24gb").takes(4)],
        steps: vec![
            (When::Now, Do::Submit("small")),
            (When::Run("small", 1), Do::Submit("large")),
            (When::Later(30), Do::Delete("small")),
            (When::IsDone("large"), Do::Nothing),
        ],
        ends: "large finished: 0 run, 0 wait, 0 claimed; small deleted: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

/// Before the small one ends comes another, that never does: it would have the room before the large one, which is queued
/// again meanwhile, were that not kept.
pub fn a_large_one_among_small_ones() -> Story {
    Story {
        name: "a-large-one-among-small-ones",
        quota: 6,
        nodes: vec![vec![a30()]],
        jobs: vec![
            job("small", "1g.6gb").takes(90),
            job("large", "4g.24gb").takes(4),
            job("next", "1g.6gb").service(),
        ],
        steps: vec![
            (When::Now, Do::Submit("small")),
            (When::Run("small", 1), Do::Submit("large")),
            (When::Later(70), Do::Submit("next")),
            (When::IsDone("large"), Do::Nothing),
            (When::IsDone("small"), Do::Nothing),
            (When::Run("next", 1), Do::Nothing),
        ],
        ends: "large finished: 0 run, 0 wait, 0 claimed; next admitted, Ready: 1 run, 0 wait, 1 claimed; small finished: 0 run, 0 wait, 0 claimed; 1 slices",
    }
}

pub fn mixed_profiles() -> Story {
    Story {
        name: "mixed-profiles",
        quota: 6,
        nodes: vec![vec![a30(), a30()], vec![a30()]],
        jobs: vec![
            pod_of("mixed", &[("1g.6gb", 2), ("4g.24gb", 1)]).takes(4),
            job("other", "2g.12gb").takes(4),
        ],
        steps: vec![
            (When::Now, Do::Submit("other")),
            (When::Now, Do::Submit("mixed")),
            (When::IsDone("mixed"), Do::Nothing),
            (When::IsDone("other"), Do::Nothing),
        ],
        ends: "mixed finished: 0 run, 0 wait, 0 claimed; other finished: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

/// Slices for both, cpu for one.
pub fn cpu_is_short() -> Story {
    Story {
        name: "cpu-is-short",
        quota: 2,
        nodes: vec![vec![a30()]],
        jobs: vec![job("first", "1g.6gb").cpu(5000).takes(4), job("second", "1g.6gb").cpu(5000).takes(4)],
        steps: vec![
            (When::Now, Do::Submit("first")),
            (When::Now, Do::Submit("second")),
            (When::IsDone("first"), Do::Nothing),
            (When::IsDone("second"), Do::Nothing),
        ],
        ends: "first finished: 0 run, 0 wait, 0 claimed; second finished: 0 run, 0 wait, 0 claimed; 0 slices",
    }
}

/// A pod's successor is there before it has gone.
pub fn replacement_overlaps() -> Story {
    Story {
        name: "replacement-overlaps",
        quota: 1,
        nodes: vec![vec![a30()]],
        jobs: vec![job("service", "4g.24gb").service()],
        steps: vec![
            (When::Now, Do::Submit("service")),
            (When::Run("service", 1), Do::DeletePod("service")),
            (When::Run("service", 0), Do::Nothing),
            (When::Run("service", 1), Do::Nothing),
        ],
        ends: "service admitted, Ready: 1 run, 0 wait, 1 claimed; 1 slices",
    }
}

/// Two nodes with an A30 each, of which a half is in use. One of the two pods may be moved, so that a whole A30 is free.
pub fn a_pod_makes_way() -> Story {
    Story {
        name: "a-pod-makes-way",
        quota: 5,
        nodes: vec![vec![a30()], vec![a30()]],
        jobs: vec![
            job("first", "2g.12gb").service().relocatable(),
            job("gone", "2g.12gb").takes(8),
            job("second", "2g.12gb").service(),
            job("whole", "4g.24gb").takes(5),
        ],
        steps: vec![
            (When::Now, Do::Submit("first")),
            (When::Run("first", 1), Do::Submit("gone")),
            (When::Run("gone", 1), Do::Submit("second")),
            (When::Run("second", 1), Do::Nothing),
            (When::IsDone("gone"), Do::Submit("whole")),
            (When::IsDone("whole"), Do::Nothing),
            (When::Run("first", 1), Do::Nothing),
        ],
        ends: "first admitted, Ready: 1 run, 0 wait, 1 claimed; gone finished: 0 run, 0 wait, 0 claimed; second admitted, \
               Ready: 1 run, 0 wait, 1 claimed; whole finished: 0 run, 0 wait, 0 claimed; 2 slices",
    }
}
