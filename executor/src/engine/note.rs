//! What the agent keeps for the executor about a task: enough for an executor that comes back with
//! empty hands. JSON, because an executor of another version reads it.

use opensandbox_api::task::Task;
use serde::{Deserialize, Serialize};

/// The note.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Note {
    /// The task as it was ordered; once it is [`Self::finished`], as it is reported.
    pub task: Task,
    /// Tasks are listed in this order.
    #[serde(default)]
    pub position: u64,
    /// Its final state, where the agent cannot know it: it was never started, or an agent before lost
    /// it.
    #[serde(default)]
    pub finished: bool,
    /// It was deleted. It is remembered so that the same run is not started again.
    #[serde(default)]
    pub deleted: bool,
}

impl Note {
    /// As bytes.
    pub fn encode(&self) -> Vec<u8> {
        // Strings, numbers and options: nothing of which serde_json could fail.
        serde_json::to_vec(self).unwrap_or_default()
    }

    /// From bytes of whatever wrote them.
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        serde_json::from_slice(bytes).ok()
    }
}
