//! `fastpath explain`: asks the daemon, or compiles a folder of manifests itself.
#![forbid(unsafe_code)]

#[cfg(test)]
mod tests;

use std::fmt::Write as _;
use std::fs::File;
use std::io::{BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use super::args::Output;
use super::table::{Columns, clean};
use super::{FAILED, Failure};
use crate::api::{Client, Request};
use crate::explain::{Explainer, Explanation, Lacking, Query, QueryError, Step, run_batch};
use crate::model::Model;
use crate::source::{Severity, load_dir};

/// What `fastpath explain --help` ends with.
pub(super) const HELP: &str = "\
Examples:
  fastpath explain --from shop/web --to shop/db --proto tcp --dport 5432
  fastpath explain --from shop/web --to shop/svc/db --dport 5432 --manifests ./manifests
  fastpath explain --from 203.0.113.7 --to shop/web --dport 443 -o json
  fastpath explain --batch queries.jsonl --manifests ./manifests > answers.jsonl

An address that a pod owns stands for that pod; pods on the host network are their node. To a service the
destination's policies see the backend and its port; the backend shown is one that a connection can get.

JSON (-o json, and every line of --batch):
  verdict            allow, deny (dropped) or reject (refused: a service without backends)
  egress, ingress    verdict, policy and rule of the source's and of the destination's policies.
                     rule is the index in the policy's egress or ingress list, from 0. No policy in play:
                     allow, policy null. Deny: rule null, policy is the first by name of those that isolate.
  nat                backend, frontend and service of the translation, or null
  path               the steps in words
A query of a batch that cannot be answered gives {\"error\":…} on its line.

Exit codes: 0 answered (whatever the verdict), 1 not answered, 2 wrong command line, 3 no daemon answers.";

/// Options of `fastpath explain`.
#[derive(Debug, clap::Args)]
pub(super) struct ExplainArgs {
    /// Who opens the connection.
    #[arg(long, value_name = "NS/POD|ADDR", required_unless_present = "batch")]
    from: Option<String>,

    /// To whom.
    #[arg(long, value_name = "NS/POD|NS/svc/NAME|ADDR", required_unless_present = "batch")]
    to: Option<String>,

    /// tcp, udp, sctp or icmp.
    #[arg(long, value_name = "PROTO", default_value = "tcp")]
    proto: String,

    /// Destination port, of a service its own and not the backend's. Not for icmp.
    #[arg(long, value_name = "N")]
    dport: Option<String>,

    /// Answer each line of FILE (`-`: standard input), a JSON query {"from":…,"to":…,"proto":…,"dport":…}.
    #[arg(long, value_name = "FILE", conflicts_with_all = ["from", "to", "dport", "proto"])]
    batch: Option<PathBuf>,

    /// Compile the manifests in DIR instead of asking the daemon: needs neither daemon nor root.
    #[arg(long, value_name = "DIR")]
    manifests: Option<PathBuf>,
}

impl From<QueryError> for Failure {
    fn from(e: QueryError) -> Self {
        Failure::Message(FAILED, e.to_string())
    }
}

/// Runs the command.
pub(super) fn run(
    args: &ExplainArgs,
    socket: &Path,
    output: Output,
    out: &mut impl Write,
) -> Result<(), Failure> {
    if let Some(file) = &args.batch {
        return batch(file, args.manifests.as_deref(), socket, out);
    }
    let text = |o: &Option<String>| o.clone().unwrap_or_default();
    let dport =
        args.dport.as_ref().map(|p| p.parse::<u16>().map_err(|_| QueryError::Port(p.clone()))).transpose()?;
    // Mistakes in the words are found here, whoever answers.
    let query = Query::new(&text(&args.from), &text(&args.to), &args.proto, dport)?;
    let explanation: Explanation = match &args.manifests {
        Some(folder) => Explainer::new(manifests(folder)?).explain(&query)?,
        None => Client::connect(socket)?.ask(Request::from(&query))?,
    };
    match output {
        Output::Json => writeln!(out, "{}", serde_json::to_string(&explanation.answer)?)?,
        Output::Table => out.write_all(table(&query, &explanation).as_bytes())?,
    }
    Ok(())
}

/// The model of a folder; what is wrong in it goes to stderr.
pub(super) fn manifests(folder: &Path) -> Result<std::sync::Arc<Model>, Failure> {
    let update = load_dir(folder).map_err(|e| Failure::Message(FAILED, e.to_string()))?;
    let mut stderr = std::io::stderr().lock();
    for problem in update.problems.iter().filter(|p| p.severity != Severity::Ignored) {
        // Nobody to tell when stderr is closed.
        let _ = writeln!(stderr, "fastpath: {}: {problem}", problem.severity);
    }
    Ok(update.model)
}

fn batch(file: &Path, folder: Option<&Path>, socket: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let unreadable = |e| Failure::Message(FAILED, format!("{}: cannot be read: {e}", file.display()));
    let input: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let opened = File::open(file).map_err(unreadable)?;
        if opened.metadata().is_ok_and(|m| m.is_dir()) {
            return Err(Failure::Message(FAILED, format!("{}: is a folder", file.display())));
        }
        Box::new(BufReader::new(opened))
    };
    let mut out = BufWriter::new(out);
    let Some(folder) = folder else { return ask_batch(input, socket, &mut out) };
    let mut explainer = Explainer::new(manifests(folder)?);
    Ok(run_batch(&mut explainer, input, &mut out)?)
}

/// The same by the daemon, a request a line.
fn ask_batch(mut input: impl BufRead, socket: &Path, out: &mut impl Write) -> Result<(), Failure> {
    let mut client = Client::connect(socket)?;
    let mut line = Vec::new();
    while input.read_until(b'\n', &mut line)? != 0 {
        let asked = Query::from_json(&line).map_err(Failure::from);
        let answer = asked.and_then(|q| Ok(client.ask::<Explanation>(Request::from(&q))?.answer));
        match answer {
            Ok(answer) => writeln!(out, "{}", serde_json::to_string(&answer)?)?,
            Err(Failure::Message(FAILED, reason)) => {
                writeln!(out, "{}", serde_json::json!({ "error": reason }))?
            }
            Err(other) => return Err(other),
        }
        line.clear();
    }
    Ok(out.flush()?)
}

fn table(query: &Query, e: &Explanation) -> String {
    let verdict = e.answer.verdict.name();
    let port = if query.dport == 0 { String::new() } else { format!(" {}", query.dport) };
    let mut text = format!("{} -> {} {}{port}: {verdict}\n\n", query.from, query.to, query.proto.name());
    let mut columns = Columns::new(&["STEP", "VERDICT", "DECIDED BY", "WHERE"]);
    for Step { name, verdict, by, at } in &e.steps {
        columns.row([name.clone(), verdict.name().to_owned(), by.clone(), at.clone().unwrap_or_default()]);
    }
    text.push_str(&columns.text());
    for lacking in &e.lacking {
        // Writing to a String cannot fail.
        let _ = reasons(&mut text, lacking);
    }
    text.push_str("\nPath\n");
    for step in &e.answer.path {
        let _ = writeln!(text, "  {}", clean(step));
    }
    text
}

fn reasons(text: &mut String, l: &Lacking) -> std::fmt::Result {
    let (verb, preposition) = if l.direction == "egress" { ("open", "to") } else { ("accept", "from") };
    writeln!(text, "\nWhy {} may not {verb} {} {preposition} {}", l.pod, l.port, clean(&l.peer))?;
    for p in &l.policies {
        writeln!(text, "  policy {} ({}) isolates it for {}", p.policy, clean(&p.at), l.direction)?;
        if p.rules.is_empty() {
            writeln!(text, "    it has no {} rules: it allows nothing", l.direction)?;
        }
        for r in &p.rules {
            writeln!(text, "    rule {} ({})", r.index, clean(&r.at))?;
            for (what, wanted) in [("peer", &r.peer), ("port", &r.port)] {
                match wanted {
                    Some(wanted) => writeln!(text, "      {what} does not match: {wanted}")?,
                    None => writeln!(text, "      {what} matches")?,
                }
            }
        }
    }
    Ok(())
}
