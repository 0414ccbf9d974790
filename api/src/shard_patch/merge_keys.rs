//! Which lists merge, and by which member: the `patchStrategy` and `patchMergeKey` of the Kubernetes
//! types (`k8s.io/api/core/v1`, `k8s.io/apimachinery/pkg/apis/meta/v1`) and of upstream's
//! TaskTemplateSpec, as one table.
//!
//! What is not in the table is an object without such lists, or a list that is replaced as a whole:
//! `command`, `args`, `envFrom`, `tolerations`, `readinessGates`, `items` of a volume, `sources` of a
//! projected volume, capabilities, affinity terms, container statuses and so on. The strategy
//! `retainKeys` (volumes, resource claims) only concerns whoever computes a patch; applying one obeys
//! `$retainKeys` wherever it stands.

use super::Kind;

/// A type, as far as patching is concerned.
#[derive(Debug)]
pub(super) struct Type {
    /// Lists that merge.
    lists: &'static [(&'static str, Merge)],
    /// Members that are objects with such lists somewhere inside.
    objects: &'static [(&'static str, &'static Self)],
}

/// How a list merges.
#[derive(Clone, Copy, Debug)]
pub(super) enum Merge {
    /// Objects, told apart by this member.
    By(&'static str, &'static Type),
    /// Scalars, each kept once.
    Set,
}

use Merge::{By, Set};

/// A type with neither merging lists nor members that have some.
static PLAIN: Type = Type {
    lists: &[],
    objects: &[],
};

static POD: Type = Type {
    lists: &[],
    objects: &[
        ("metadata", &OBJECT_META),
        ("spec", &POD_SPEC),
        ("status", &POD_STATUS),
    ],
};

static POD_TEMPLATE_SPEC: Type = Type {
    lists: &[],
    objects: &[("metadata", &OBJECT_META), ("spec", &POD_SPEC)],
};

static OBJECT_META: Type = Type {
    lists: &[("ownerReferences", By("uid", &PLAIN)), ("finalizers", Set)],
    objects: &[],
};

static POD_SPEC: Type = Type {
    lists: &[
        ("volumes", By("name", &VOLUME)),
        ("initContainers", By("name", &CONTAINER)),
        ("containers", By("name", &CONTAINER)),
        ("ephemeralContainers", By("name", &CONTAINER)),
        ("imagePullSecrets", By("name", &PLAIN)),
        ("hostAliases", By("ip", &PLAIN)),
        ("topologySpreadConstraints", By("topologyKey", &PLAIN)),
        ("schedulingGates", By("name", &PLAIN)),
        ("resourceClaims", By("name", &PLAIN)),
    ],
    objects: &[],
};

/// Container and EphemeralContainer: the same lists.
static CONTAINER: Type = Type {
    lists: &[
        ("ports", By("containerPort", &PLAIN)),
        ("env", By("name", &PLAIN)),
        ("volumeMounts", By("mountPath", &PLAIN)),
        ("volumeDevices", By("devicePath", &PLAIN)),
    ],
    objects: &[],
};

static VOLUME: Type = Type {
    lists: &[],
    objects: &[("ephemeral", &EPHEMERAL_VOLUME_SOURCE)],
};

static EPHEMERAL_VOLUME_SOURCE: Type = Type {
    lists: &[],
    objects: &[("volumeClaimTemplate", &VOLUME_CLAIM_TEMPLATE)],
};

static VOLUME_CLAIM_TEMPLATE: Type = Type {
    lists: &[],
    objects: &[("metadata", &OBJECT_META)],
};

static POD_STATUS: Type = Type {
    lists: &[
        ("conditions", By("type", &PLAIN)),
        ("hostIPs", By("ip", &PLAIN)),
        ("podIPs", By("ip", &PLAIN)),
        ("resourceClaimStatuses", By("name", &PLAIN)),
    ],
    objects: &[],
};

static TASK_TEMPLATE_SPEC: Type = Type {
    lists: &[],
    objects: &[("spec", &TASK_SPEC)],
};

static TASK_SPEC: Type = Type {
    lists: &[],
    objects: &[("process", &PROCESS_TASK)],
};

static PROCESS_TASK: Type = Type {
    lists: &[("env", By("name", &PLAIN))],
    objects: &[],
};

impl Type {
    pub(super) fn of(kind: Kind) -> &'static Self {
        match kind {
            Kind::Pod => &POD,
            Kind::PodTemplate => &POD_TEMPLATE_SPEC,
            Kind::TaskTemplate => &TASK_TEMPLATE_SPEC,
        }
    }

    /// How the list of that name merges; `None` means that it is replaced as a whole.
    pub(super) fn list(&self, name: &str) -> Option<Merge> {
        self.lists
            .iter()
            .find(|(list, _)| *list == name)
            .map(|(_, merge)| *merge)
    }

    /// The type of the object of that name.
    pub(super) fn object(&self, name: &str) -> &'static Self {
        self.objects
            .iter()
            .find(|(object, _)| *object == name)
            .map_or(&PLAIN, |(_, of)| of)
    }
}
