//! The whole agent between simulated GPUs, a kubelet and an API server.
//!
//! Each test is a process of its own, since the simulator is loaded once; nothing sleeps, everything waits for what must
//! come. That something does *not* happen is told from the kubelet's record: after a few more looks of the agent's at the
//! kubelet it would have.

mod rig;

mod adding;
mod answers;
mod end;
mod gpus;
mod init;
mod kubelet;
mod pods;
mod processes;
mod removal;
mod restart;

use rig::{Rig, on_node};
