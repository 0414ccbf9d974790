//! No document prints a command that nothing runs; see `tests/src/documents/commands.rs` for what runs which.

use std::collections::BTreeSet;

use anyhow::{Result, ensure};
use opensandbox_tests::documents::{RUNS, Run, commands, read, run_of};

#[test]
fn every_command_is_run_by_a_test() -> Result<()> {
    let commands = commands()?;
    ensure!(
        commands.len() > 50,
        "only {} commands were found",
        commands.len()
    );
    let mut used = BTreeSet::new();
    let mut unknown = Vec::new();
    for command in &commands {
        match run_of(&command.text) {
            Some((pattern, _)) => {
                used.insert(*pattern);
            }
            None => unknown.push(format!("{}: {}", command.place, command.text)),
        }
    }
    ensure!(
        unknown.is_empty(),
        "nothing runs these; see RUNS in tests/src/documents/commands.rs\n{}",
        unknown.join("\n")
    );
    for (pattern, _) in RUNS {
        ensure!(
            used.contains(pattern),
            "no document prints {pattern:?} any more"
        );
    }
    Ok(())
}

#[test]
fn the_tests_that_run_them_are_there() -> Result<()> {
    for (pattern, run) in RUNS {
        if let Run::Test(path, words) = run {
            ensure!(
                read(path)?.contains(words),
                "{path} is said to run {pattern:?}, but there is no {words:?} in it"
            );
        }
    }
    Ok(())
}

#[test]
fn both_readmes_print_the_same() -> Result<()> {
    let of = |page: &str| -> Result<Vec<_>> {
        let page = opensandbox_tests::documents::Page::read(page)?;
        let blocks = page.blocks().into_iter();
        Ok(blocks
            .map(|block| {
                // Comments are in the language of the page.
                let lines = block
                    .text
                    .lines()
                    .map(|line| match line.split_once("   #") {
                        Some((command, _)) => command.trim().to_owned(),
                        None => line.split(" # ").next().unwrap_or(line).trim().to_owned(),
                    });
                (block.language.clone(), lines.collect::<Vec<_>>())
            })
            .collect())
    };
    let (english, chinese) = (of("README.md")?, of("README-ZH.md")?);
    ensure!(english == chinese, "{english:#?}\n{chinese:#?}");
    let headings = |page: &str| -> Result<usize> {
        Ok(opensandbox_tests::documents::Page::read(page)?
            .anchors()
            .len())
    };
    ensure!(headings("README.md")? == headings("README-ZH.md")?);
    Ok(())
}
