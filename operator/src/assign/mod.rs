//! Which pool a BatchSandbox with `poolRef: "*"` gets (upstream.md 2.9).
//!
//! In: the sandbox, the pools of its namespace, the profile. Out: the name of a pool, or why none of them.
//! All predicates have to hold; the largest sum of weighted scores wins, the smaller name among equals.
//! Nothing is reserved by it: the pool chosen may still let the sandbox wait. Pure.

mod predicate;
mod profile;
mod quantity;
mod template;

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::sync::Arc;

use opensandbox_api::v1alpha1::BatchSandboxSpec;

use self::predicate::Pair;
use self::profile::Strategy;
use self::template::Template;
use crate::text::cut;
use crate::view::{PoolView, SandboxView};

pub use self::profile::{CONFIG_MAP, KEY, Profiles};

/// Most bytes of an error, and most pools that it names.
const ERROR: usize = 1024;
const NAMED: usize = 8;

/// The name of the best pool for this sandbox.
///
/// # Errors
/// If there is none: for each pool why not, in at most 1 KiB.
pub fn choose(
    sandbox: &SandboxView,
    pools: &[Arc<PoolView>],
    profiles: &Profiles,
) -> Result<String, String> {
    let spec = match &sandbox.spec {
        Ok(spec) => spec,
        Err(problem) => {
            let why = format!("the BatchSandbox cannot be read: {problem}");
            return Err(cut(why, ERROR));
        }
    };
    let mut best: Option<(f64, &str)> = None;
    let mut refusals = Vec::new();
    for pool in pools {
        let name = pool.key.name.as_str();
        if pool.key.namespace != sandbox.key.namespace {
            continue;
        }
        match score(sandbox, spec, pool, profiles) {
            Err(why) => refusals.push((name, why)),
            Ok(score) => {
                let better = best
                    .is_none_or(|(most, chosen)| score > most || (score >= most && name < chosen));
                if better {
                    best = Some((score, name));
                }
            }
        }
    }
    match best {
        Some((_, name)) => Ok(name.to_owned()),
        None => Err(refused(refusals)),
    }
}

/// The score of a pool that fits, or why it does not.
fn score(
    sandbox: &SandboxView,
    sandbox_spec: &BatchSandboxSpec,
    pool: &PoolView,
    profiles: &Profiles,
) -> Result<f64, String> {
    if pool.deleting {
        return Err("is being deleted".to_owned());
    }
    let pool_spec = match &pool.spec {
        Ok(spec) => spec,
        Err(problem) => return Err(format!("cannot be read: {problem}")),
    };
    let Some(template) = Template::new(pool_spec.template.as_ref()) else {
        return Err("has no template".to_owned());
    };
    if pool_spec.capacity_spec.pool_max <= 0 {
        return Err("poolMax is 0".to_owned());
    }
    let pair = Pair {
        sandbox,
        sandbox_spec,
        pool,
        pool_spec,
        templates: Template::new(sandbox_spec.template.as_ref()).map(|own| (own, template)),
    };
    for predicate in &profiles.predicates {
        pair.check(predicate)?;
    }
    let (allocated, total) = (pool.status.allocated, pool.status.total);
    let scores = profiles.scores.iter().map(|(strategy, weight)| {
        let ratio = f64::from(allocated) / f64::from(total);
        let score = match strategy {
            _ if total <= 0 => 0.0,
            Strategy::LeastAllocated => 1.0 - ratio,
            Strategy::MostAllocated => ratio,
        };
        score * weight
    });
    Ok(scores.sum())
}

/// Why no pool was chosen.
fn refused(mut refusals: Vec<(&str, String)>) -> String {
    if refusals.is_empty() {
        return "there is no Pool in the namespace; create one".to_owned();
    }
    refusals.sort();
    let mut text = format!("none of {} pools fits", refusals.len());
    for (index, (name, why)) in refusals.iter().take(NAMED).enumerate() {
        let separator = if index == 0 { ':' } else { ';' };
        let why = &why[..why.floor_char_boundary(ERROR / NAMED)];
        // Writing to a String does not fail.
        let _ = write!(text, "{separator} {name}: {why}");
    }
    if refusals.len() > NAMED {
        let _ = write!(text, "; and {} more", refusals.len() - NAMED);
    }
    cut(text, ERROR)
}
