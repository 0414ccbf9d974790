//! What decides about pools: the ConfigMap `pool-assign-profiles` in the installation's namespace, whose
//! key `profiles` is a JSON array.
//!
//! ```json
//! [{"name": "default",
//!   "plugins": {"predicate": ["capacity", "image"], "score": [{"name": "resbalance", "weight": 100}]},
//!   "pluginConf": [{"name": "resbalance", "args": {"strategy": "MostAllocated"}}]}]
//! ```
//!
//! Only the profile named `default` is ever used, as upstream does. Pure.

use serde_json::Value;

/// Name of the ConfigMap.
pub const CONFIG_MAP: &str = "pool-assign-profiles";
/// Its key.
pub const KEY: &str = "profiles";
/// The profile that is used.
const PROFILE: &str = "default";
/// Most problems that are reported, and most bytes of a name in one.
const PROBLEMS: usize = 16;
const NAME: usize = 64;
/// Most plugins of a profile; there are six, and saying one twice changes nothing but a weight.
const PLUGINS: usize = 64;

/// What a pool has to fulfil.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Predicate {
    /// As many pods are left, by `poolMax` and what is allocated, as the sandbox has replicas.
    Capacity,
    /// A container image in common.
    Image,
    /// Requests at least as large.
    Resource,
    /// The sandbox's node selector and required node affinity fit the pool's labels and node selector.
    NodeSelector,
    /// Both have these labels, with equal values.
    LabelSelector(Vec<String>),
}

/// Which pool is better.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Strategy {
    /// The one of which less is allocated.
    LeastAllocated,
    /// The one of which more is allocated.
    MostAllocated,
}

/// How pools are chosen.
#[derive(Clone, Debug, PartialEq)]
pub struct Profiles {
    pub(super) predicates: Vec<Predicate>,
    /// Each with its weight.
    pub(super) scores: Vec<(Strategy, f64)>,
}

impl Default for Profiles {
    /// What holds where nothing is configured.
    fn default() -> Self {
        Self {
            predicates: vec![
                Predicate::Capacity,
                Predicate::Image,
                Predicate::Resource,
                Predicate::NodeSelector,
            ],
            scores: vec![(Strategy::LeastAllocated, 100.0)],
        }
    }
}

impl Profiles {
    /// Reads the value of [`KEY`], and says what in it was not taken, for people. A text that cannot be
    /// read counts as none.
    pub fn read(text: Option<&str>) -> (Self, Vec<String>) {
        let Some(text) = text.filter(|text| !text.trim().is_empty()) else {
            return (Self::default(), Vec::new());
        };
        let profiles: Vec<Value> = match serde_json::from_str(text) {
            Ok(profiles) => profiles,
            Err(error) => {
                let problem = format!(
                    "{KEY}: not a JSON array of profiles (line {}, column {}); the built-in profile is used",
                    error.line(),
                    error.column()
                );
                return (Self::default(), vec![problem]);
            }
        };
        // The last one of a name counts, as upstream has it.
        let Some((index, profile)) = profiles
            .iter()
            .enumerate()
            .rfind(|(_, profile)| profile.get("name").and_then(Value::as_str) == Some(PROFILE))
        else {
            let problem =
                format!("{KEY}: no profile is named {PROFILE:?}; the built-in one is used");
            return (Self::default(), vec![problem]);
        };
        let mut reader = Reader {
            path: format!("{KEY}[{index}]"),
            profile,
            problems: Vec::new(),
        };
        let read = Self {
            predicates: reader.predicates(),
            scores: reader.scores(),
        };
        reader.problems.truncate(PROBLEMS);
        (read, reader.problems)
    }
}

struct Reader<'a> {
    path: String,
    profile: &'a Value,
    problems: Vec<String>,
}

impl<'a> Reader<'a> {
    fn list(&mut self, pointer: &str) -> &'a [Value] {
        match self.profile.pointer(pointer) {
            None | Some(Value::Null) => &[],
            Some(Value::Array(items)) => &items[..items.len().min(PLUGINS)],
            Some(_) => {
                self.problem(pointer, "must be an array; it is ignored");
                &[]
            }
        }
    }

    fn problem(&mut self, pointer: &str, what: &str) {
        let path = pointer.replace('/', ".");
        self.problems.push(format!("{}{path}: {what}", self.path));
    }

    fn predicates(&mut self) -> Vec<Predicate> {
        let pointer = "/plugins/predicate";
        let mut predicates = Vec::new();
        for name in self.list(pointer) {
            let predicate = match name.as_str() {
                Some("capacity") => Predicate::Capacity,
                Some("image") => Predicate::Image,
                Some("resource") => Predicate::Resource,
                Some("nodeselector") => Predicate::NodeSelector,
                Some("labelselector") => Predicate::LabelSelector(self.label_keys()),
                other => {
                    let known = "capacity, image, resource, nodeselector, labelselector";
                    self.unknown(pointer, other, known);
                    continue;
                }
            };
            predicates.push(predicate);
        }
        predicates
    }

    fn scores(&mut self) -> Vec<(Strategy, f64)> {
        let pointer = "/plugins/score";
        let mut scores = Vec::new();
        for score in self.list(pointer) {
            match score.get("name").and_then(Value::as_str) {
                Some("resbalance") => {}
                other => {
                    self.unknown(pointer, other, "resbalance");
                    continue;
                }
            }
            let weight = match score.get("weight") {
                None | Some(Value::Null) => Some(0.0),
                Some(weight) => weight.as_i64().and(weight.as_f64()),
            };
            match weight {
                Some(weight) => scores.push((self.strategy(), weight)),
                None => self.problem(
                    pointer,
                    "weight must be a whole number; the entry is ignored",
                ),
            }
        }
        scores
    }

    fn unknown(&mut self, pointer: &str, name: Option<&str>, known: &str) {
        let name = name.map_or_else(
            || "an entry without a name".to_owned(),
            |name| format!("{:?}", &name[..name.floor_char_boundary(NAME)]),
        );
        let what = format!("there is no plugin {name}, it is ignored; known are {known}");
        self.problem(pointer, &what);
    }

    /// The arguments of a plugin; of several entries the last one counts.
    fn argument(&mut self, plugin: &str, name: &str) -> Option<&'a Value> {
        self.list("/pluginConf")
            .iter()
            .rfind(|conf| conf.get("name").and_then(Value::as_str) == Some(plugin))
            .and_then(|conf| conf.get("args")?.get(name))
    }

    fn label_keys(&mut self) -> Vec<String> {
        let keys = self.argument("labelselector", "keys");
        let texts = keys.and_then(Value::as_array).map(|keys| {
            let texts = keys.iter().take(PLUGINS).filter_map(Value::as_str);
            texts.map(str::to_owned).collect::<Vec<_>>()
        });
        if texts.is_none() && keys.is_some() {
            self.problem(
                "/pluginConf",
                "keys of labelselector must be an array; no label is compared",
            );
        }
        texts.unwrap_or_default()
    }

    fn strategy(&mut self) -> Strategy {
        match self.argument("resbalance", "strategy").map(Value::as_str) {
            None | Some(Some("LeastAllocated")) => Strategy::LeastAllocated,
            Some(Some("MostAllocated")) => Strategy::MostAllocated,
            Some(_) => {
                let what = "strategy of resbalance must be LeastAllocated or MostAllocated; LeastAllocated is used";
                self.problem("/pluginConf", what);
                Strategy::LeastAllocated
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Profiles, Vec<String>) {
        Profiles::read(Some(text))
    }

    #[test]
    fn without_a_profile_the_built_in_one_holds() {
        assert_eq!(Profiles::read(None), (Profiles::default(), vec![]));
        assert_eq!(read(" \n"), (Profiles::default(), vec![]));
        for text in [
            "{",
            "{}",
            "[",
            "[] x",
            "[]",
            r#"[{"name":"other"}]"#,
            "[null, 3]",
        ] {
            let (profiles, problems) = read(text);
            assert_eq!(profiles, Profiles::default(), "{text}");
            assert_eq!(problems.len(), 1, "{text}");
        }
    }

    #[test]
    fn a_whole_profile_is_taken_as_it_is() {
        let (profiles, problems) = read(
            r#"[{"name":"default","plugins":{"predicate":["labelselector","image"],
                "score":[{"name":"resbalance","weight":7}]},"pluginConf":[
                {"name":"labelselector","args":{"keys":["a","b"]}},
                {"name":"resbalance","args":{"strategy":"MostAllocated"}}]}]"#,
        );
        assert_eq!(problems, [""; 0]);
        let keys = vec!["a".to_owned(), "b".to_owned()];
        let predicates = vec![Predicate::LabelSelector(keys), Predicate::Image];
        let scores = vec![(Strategy::MostAllocated, 7.0)];
        assert_eq!(profiles, Profiles { predicates, scores });
        let empty = Profiles {
            predicates: vec![],
            scores: vec![],
        };
        assert_eq!(read(r#"[{"name":"default"}]"#), (empty, vec![]));
    }

    #[test]
    fn unknown_names_are_reported_and_ignored() {
        let (profiles, problems) = read(
            r#"[{"name":"default","plugins":{"predicate":["image","magic",3],
                "score":[{"name":"luck","weight":1},{"name":"resbalance","weight":"x"}]},
                "pluginConf":[{"name":"resbalance","args":{"strategy":"Random"}}]}]"#,
        );
        assert_eq!(profiles.predicates, [Predicate::Image]);
        assert_eq!(profiles.scores, []);
        assert_eq!(problems.len(), 4, "{problems:?}");
        assert!(
            problems[0].starts_with(r#"profiles[0].plugins.predicate: there is no plugin "magic""#)
        );
    }

    #[test]
    fn problems_are_bounded() {
        let name = "é".repeat(1000);
        let names = vec![format!("{name:?}"); 10_000].join(",");
        let (_, problems) = read(&format!(
            r#"[{{"name":"default","plugins":{{"predicate":[{names}],"score":3}}}}]"#
        ));
        assert_eq!(problems.len(), PROBLEMS);
        assert!(problems.iter().all(|problem| problem.len() < 512));
    }
}
