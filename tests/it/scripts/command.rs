//! The commands of the scripts.
//!
//! ```text
//! open ordered: streams a b, tablets r0 r1[, clock-skew 10][, without-gate][, started][, window 2][, held 4]
//! a: RECORD; RECORD; ...      one report of stream a; each record takes the next position, 1, 2, 3, ...
//! a#1: ...                    the same from the puller with epoch 1
//! a again | a gap             the last report once more, one that leaves something out
//! slot a 0 [of t@7 u]         a slot stands; its snapshot holds these tables, whose copies begin (t@7: relation 7)
//! look a at 9: t@7 u          what the publication has, read before the server had flushed 9
//! begin a: t u   copied a t 5 rows as of 9     copies begin; one is durable, from a snapshot at 9
//! speaks a t@7 [by name]      the stream is about to send changes of a table, whose key is `id`, or another column
//! recopy [a] [table t]        somebody asks for new copies   restart with a c: another configuration
//! slot a 0   fence a=5 b=6 [prepared b:T] [before a=4 b=5]   gone b T at 9
//! round a=5 b=6 | round failed | round nothing asked after p4 a=5 b=6
//! applied r0 | applied all    everything that was handed to it is durably applied there
//! has r0 5                    it says so, up to entry 5, and no tick comes to put it into the log
//! refuses r0 4 CAUSE          it says no to the decisions of entry 4
//! wanted a                    what the poller of a is told
//! ack a                       everything taken is acknowledged to the source
//! hold | release [N]          the barriers of entries do not come | so many come, or all
//! no-poll | poll              entries are not taken from the machine | they are
//! crash | unknown-append did | unknown-append did-not | snapshot
//! reopen a | join c | stopped a CAUSE | tick 100ms | clock 500 | read | read t at 500 | explain T
//! ```
//!
//! Records with a common clock: `created T`, `pending T`, `wrote T 2 r0,r1`, `applying T [of 2]`,
//! `commit T at 100 [of a:2,b:1]`, `aborted T`, `safe 99`, `not-running T U`, `split a1 a2`.
//! Records of PostgreSQL: `prepare T 2 r0 [@50]`, `commit-prepared T at 120`, `rollback-prepared T`,
//! `commit-one T 2 r0 at 130`, `late T 2 r0 @50 at 140` (a PREPARE from before the slot, sent with its end); writes may end with `after T,U` (the branches of this stream that wrote a key before).
//! Both: `to 50` moves on to position 50, `head 50` is a keepalive, and
//! `acknowledge 9` says what was acknowledged to the source. `prepared T 1 r0 @50` is the PREPARE of a branch that `wrote`.

use super::world::{Stream, World};
use untorn::coordinator::{
    Applied, ApplyingFact, Fact, Fence, InvolvedStream, Involvement, PublishedColumn, PublishedTable, Release, Report,
    Settings,
};
use untorn::wal::{BranchId, Column, Epoch, HybridTime, LogPosition, OpId, SourceTabletId, SourceTransactionId};

pub fn run(world: &mut World, line: &str) -> Result<Vec<String>, String> {
    let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
    match word.strip_suffix(':') {
        Some(stream) => report(world, stream, rest)?,
        None => command(world, word, rest)?,
    }
    if world.polls {
        world.drain()?;
    } else {
        world.outputs()?;
    }
    Ok(std::mem::take(&mut world.lines))
}

fn command(world: &mut World, word: &str, rest: &str) -> Result<(), String> {
    let now = world.now;
    match word {
        "open" => open(world, rest)?,
        "slot" => {
            let (name, start) = rest.split_once(' ').ok_or("slot STREAM POSITION")?;
            let (start, tables) = start.split_once(" of ").unwrap_or((start, ""));
            slot(world, name, number(start)?, &published(tables)?)?;
        }
        "look" => {
            let (name, rest) = rest.split_once(" at ").ok_or("look STREAM at POSITION: TABLES")?;
            let (flushed, tables) = rest.split_once(':').ok_or("look STREAM at POSITION: TABLES")?;
            let Stream { number, puller, .. } = world.stream(name)?.clone();
            let (flushed, tables) = (position(flushed)?, published(tables)?);
            match world.machine().handle_published(now, number, puller, flushed, &tables) {
                Ok(promise) => world.lines.push(format!("may be copied now: {}", promise.value.join(" "))),
                Err(e) => world.refused(&e),
            }
        }
        "begin" => {
            let (name, tables) = rest.split_once(':').ok_or("begin STREAM: TABLES")?;
            let Stream { number, puller, .. } = world.stream(name)?.clone();
            let tables: Vec<_> = tables.split_whitespace().map(str::to_owned).collect();
            let begun = world.machine().handle_copy_begun(now, number, puller, &tables);
            world.stream(name)?.base = begun.map_err(|e| e.to_string())?.value;
        }
        "copied" => {
            let words: Vec<&str> = rest.split(' ').collect();
            let [name, table, rows, "rows", "as", "of", snapshot] = words[..] else {
                return Err("copied STREAM TABLE 5 rows as of POSITION".into());
            };
            let Stream { number: stream, puller, base, .. } = world.stream(name)?.clone();
            let done = (base, position(snapshot)?, number(rows)?);
            world.machine().handle_copied(now, stream, puller, table, done).map_err(|e| e.to_string())?;
        }
        "speaks" => {
            let (name, rest) = rest.split_once(' ').ok_or("speaks STREAM TABLE@RELATION")?;
            let (table, key) = rest.split_once(" by ").unwrap_or((rest, "id"));
            let table = published(table)?.pop().ok_or("speaks STREAM TABLE@RELATION")?;
            let stream = world.stream(name)?.number;
            let columns = vec![Column { name: key.to_owned(), type_name: "int8".into(), key: true }];
            world.machine().handle_table(now, &table.name, columns, Some((stream, table.relation)));
        }
        "recopy" => {
            let words: Vec<&str> = rest.split_whitespace().collect();
            let (stream, table) = match words[..] {
                ["table", table] => (None, Some(table)),
                [stream] => (Some(stream), None),
                [stream, "table", table] => (Some(stream), Some(table)),
                _ => return Err("recopy [STREAM] [table TABLE]".into()),
            };
            if let Err(e) = world.machine().handle_recopy(now, stream, table) {
                world.lines.push(format!("refused: {e}"));
            }
        }
        "restart" => {
            let names = rest.strip_prefix("with ").ok_or("restart with STREAMS")?;
            let names: Vec<_> = names.split_whitespace().map(str::to_owned).collect();
            world.open(&names)?;
        }
        "fence" if rest == "failed" => world.machine().handle_fence(now, None),
        "fence" => {
            let fence = fence(world, rest)?;
            world.machine().handle_fence(now, Some(fence));
        }
        "gone" => {
            let words: Vec<&str> = rest.split(' ').collect();
            let [stream, transaction, "at", at] = words[..] else { return Err("gone STREAM T at POSITION".into()) };
            let stream = world.stream(stream)?.number;
            let at = position(at)?;
            world.machine().handle_fence_resolved(now, stream, vec![source(transaction)], at);
        }
        "round" => round(world, rest)?,
        "applied" => {
            let tablets = match rest {
                "all" => world.tablet_names.clone(),
                one => vec![one.to_owned()],
            };
            for tablet in tablets {
                let tablet = world.tablet(&tablet)?;
                let through = world.machine().handed_through(tablet);
                world.machine().handle_applied(tablet, Applied { heard: through, applied: through });
            }
            world.machine().handle_tick(now);
        }
        "has" => {
            let (tablet, position) = rest.split_once(' ').ok_or("has TABLET POSITION")?;
            let (tablet, through) = (world.tablet(tablet)?, LogPosition(number(position)?));
            world.machine().handle_applied(tablet, Applied { heard: through, applied: through });
        }
        "refuses" => {
            let [tablet, position, cause] = rest.splitn(3, ' ').collect::<Vec<_>>()[..] else {
                return Err("refuses TABLET POSITION CAUSE".into());
            };
            let (tablet, position) = (world.tablet(tablet)?, LogPosition(number(position)?));
            world.machine().handle_refused(tablet, position, None, cause.to_owned());
        }
        "handed" => {
            let tablet = world.tablet(rest)?;
            let machine = world.machine();
            let (through, safe) = (machine.handed_through(tablet), machine.handed_safe(tablet));
            let safe = safe.map_or_else(|| "no safe time".into(), |safe| format!("safe {}", safe.time.micros()));
            world.lines.push(format!("{rest} was handed the log through p{}, {safe}", through.0));
        }
        "wanted" => {
            let stream = world.stream(rest)?.number;
            let machine = world.machine();
            let pause = machine.must_pause(stream).map(|behind| format!("to pause for {behind}"));
            let wanted = machine.must_stop(stream).map(|cause| format!("to stop: {cause}")).or(pause);
            world.lines.push(format!("{rest} is {}", wanted.unwrap_or_else(|| "to go on".into())));
        }
        "ack" => {
            let stream = world.stream(rest)?;
            stream.acknowledged = stream.checkpoint;
            report(world, rest, "")?;
        }
        "hold" => world.hold = true,
        "no-poll" => world.polls = false,
        "poll" => world.polls = true,
        "release" => match rest {
            "" => {
                world.hold = false;
            }
            count => {
                world.durable(number(count)? as usize);
            }
        },
        "unknown-append" => {
            match rest {
                "did" => world.durable(1),
                "did-not" => false,
                _ => return Err("did, or did-not".into()),
            };
            crash(world)?;
        }
        "crash" => crash(world)?,
        "snapshot" => world.take_snapshot()?,
        "reopen" => {
            if let Err(e) = world.open_stream(rest) {
                world.refused(&e);
            }
        }
        "join" => {
            world.machine().handle_stream_joined(now, rest);
            world.open_stream(rest).map_err(|e| e.to_string())?;
        }
        "stopped" => {
            let (name, cause) = rest.split_once(' ').ok_or("stopped STREAM CAUSE")?;
            let stream = world.stream(name)?.number;
            world.machine().handle_stream_stopped(stream, Some(cause.to_owned()));
        }
        "tick" => {
            let millis = number(rest.strip_suffix("ms").ok_or("tick 100ms")?)?;
            world.now = HybridTime::from_micros(now.micros() + millis * 1000);
            let now = world.now;
            world.machine().handle_tick(now);
        }
        "clock" => world.now = micros(rest)?,
        "read" => {
            let line = match rest.split_once(" at ") {
                Some((table, time)) => super::trace::missed(world.machine(), table, micros(time)?),
                None => super::trace::read(world.machine()),
            };
            world.lines.push(line);
        }
        "explain" => {
            let told: Vec<_> = world.machine().explain(rest).into_iter().map(|e| (e.behind_it, e.text)).collect();
            world.lines.extend(told.into_iter().map(|(behind, text)| format!("{text} ({behind} behind it)")));
        }
        name if rest == "again" || rest == "gap" => odd_report(world, name, rest == "again")?,
        _ => return Err("no such command".into()),
    }
    Ok(())
}

fn crash(world: &mut World) -> Result<(), String> {
    let mut names: Vec<(SourceTabletId, String)> =
        world.streams.iter().map(|(name, stream)| (stream.number, name.clone())).collect();
    names.sort();
    let names: Vec<String> = names.into_iter().map(|(_, name)| name).collect();
    world.open(&names)
}

fn open(world: &mut World, rest: &str) -> Result<(), String> {
    let (release, rest) = rest.split_once(':').ok_or("open RELEASE: streams ..., tablets ...")?;
    let release = match release {
        "common-clock" => Release::CommonClock,
        "ordered" => Release::Ordered,
        "atomic" => Release::Atomic,
        _ => return Err("common-clock, ordered or atomic".into()),
    };
    let mut settings = Settings { release, clock_skew_micros: 0, ..Settings::default() };
    let (mut streams, mut started) = (Vec::new(), false);
    for part in rest.split(',') {
        let words: Vec<&str> = part.split_whitespace().collect();
        match words[..] {
            ["streams", ref names @ ..] => streams = names.iter().map(|name| name.to_string()).collect(),
            ["tablets", ref names @ ..] => world.tablet_names = names.iter().map(|name| name.to_string()).collect(),
            ["clock-skew", micros] => settings.clock_skew_micros = number(micros)?,
            ["without-gate"] => settings.gate = false,
            ["window", count] => settings.apply_window = number(count)? as usize,
            ["held", count] => settings.transactions_held = number(count)? as usize,
            ["started"] => started = true,
            _ => return Err(format!("what is {part}?")),
        }
    }
    world.settings = settings;
    world.now = HybridTime::from_micros(1000);
    world.open(&streams)?;
    if started {
        for name in &streams {
            slot(world, name, 0, &[])?;
        }
        world.drain()?;
        let positions: Vec<String> = streams.iter().map(|name| format!("{name}=0")).collect();
        let fence = fence(world, &positions.join(" "))?;
        let now = world.now;
        world.machine().handle_fence(now, Some(fence));
    }
    Ok(())
}

/// Tables by name and relation: `t@7`, or `t` for relation 1; `t@7+c` has a second column, which old rows have values in.
fn published(tables: &str) -> Result<Vec<PublishedTable>, String> {
    let column = |number, name: &str, filled| PublishedColumn { number, name: name.into(), type_id: 20, filled };
    let one = |table: &str| {
        let (table, more) = table.split_once('+').map_or((table, None), |(table, more)| (table, Some(more)));
        let (name, relation) = table.split_once('@').unwrap_or((table, "1"));
        let columns = [column(1, "id", false)].into_iter().chain(more.map(|more| column(2, more, true))).collect();
        Ok(PublishedTable { name: name.to_owned(), relation: number(relation)? as u32, columns })
    };
    tables.split_whitespace().map(one).collect()
}

fn slot(world: &mut World, name: &str, start: u64, tables: &[PublishedTable]) -> Result<(), String> {
    let now = world.now;
    let start = OpId::new(start, 0);
    let stream = world.stream(name)?;
    stream.checkpoint = stream.checkpoint.max(start);
    let (number, puller) = (stream.number, stream.puller);
    match world.machine().handle_slot(now, number, puller, start, name, tables) {
        Ok(promise) => world.stream(name)?.base = promise.value,
        Err(e) => world.refused(&e),
    }
    Ok(())
}

fn fence(world: &mut World, rest: &str) -> Result<Fence, String> {
    let (mut positions, mut before, mut prepared) = (Vec::new(), Vec::new(), Vec::new());
    let mut section = "at";
    for word in rest.split_whitespace() {
        if let Some((name, at)) = word.split_once('=') {
            let one = (world.stream(name)?.number, position(at)?);
            if section == "before" { before.push(one) } else { positions.push(one) }
        } else if let Some((name, transaction)) = word.split_once(':') {
            prepared.push((world.stream(name)?.number, source(transaction)));
        } else {
            section = word;
        }
    }
    if before.is_empty() {
        before.clone_from(&positions);
    }
    Ok(Fence { before, prepared, positions })
}

fn round(world: &mut World, rest: &str) -> Result<(), String> {
    let now = world.now;
    if rest == "failed" {
        world.machine().handle_round(now, LogPosition(0), None);
        return Ok(());
    }
    let asked = world.round_begun_after.take();
    let (begun_after, rest) = match rest.strip_prefix("nothing asked after p") {
        Some(rest) => {
            let (after, rest) = rest.split_once(' ').ok_or("after pN a=5")?;
            (LogPosition(number(after)?), rest)
        }
        None => (asked.ok_or("no round was asked for")?, rest),
    };
    let mut positions = Vec::new();
    for word in rest.split_whitespace() {
        let (name, at) = word.split_once('=').ok_or("round a=5 b=6")?;
        positions.push((world.stream(name)?.number, position(at)?));
    }
    world.machine().handle_round(now, begun_after, Some(positions));
    Ok(())
}

/// A report that does not follow: one that was taken already, or one after something that was never reported.
fn odd_report(world: &mut World, name: &str, again: bool) -> Result<(), String> {
    let now = world.now;
    let stream = world.stream(name)?.clone();
    let held = stream.checkpoint.term;
    let (follows, upto) = if again { (held.saturating_sub(1), held) } else { (held + 1, held + 2) };
    let report = Report {
        stream: stream.number,
        puller: stream.puller,
        follows: OpId::new(follows, 0),
        upto: OpId::new(upto, 0),
        acknowledged: stream.acknowledged,
        ..Report::default()
    };
    match world.machine().handle_report(now, report) {
        Ok(promise) => world.promised(name, promise),
        Err(e) => world.refused(&e),
    }
    Ok(())
}

fn report(world: &mut World, name: &str, records: &str) -> Result<(), String> {
    let (name, puller) = match name.split_once('#') {
        Some((name, puller)) => (name, Some(Epoch(number(puller)?))),
        None => (name, None),
    };
    let now = world.now;
    let before = world.stream(name)?.clone();
    let mut stream = before.clone();
    let mut facts = Vec::new();
    for record in records.split(';').map(str::trim).filter(|record| !record.is_empty()) {
        facts.extend(fact(world, &mut stream, record).map_err(|e| format!("`{record}`: {e}"))?);
    }
    let mut stored: Vec<_> = facts
        .iter()
        .filter_map(|fact| match fact {
            Fact::Branch { tablets, .. } => Some(tablets.iter().map(|tablet| (*tablet, stream.checkpoint))),
            _ => None,
        })
        .flatten()
        .collect();
    stored.sort_unstable();
    stored.dedup();
    let report = Report {
        stream: stream.number,
        puller: puller.unwrap_or(stream.puller),
        follows: before.checkpoint,
        upto: stream.checkpoint,
        head: OpId::new(stream.head, 0),
        acknowledged: stream.acknowledged,
        stored,
        facts,
    };
    match world.machine().handle_report(now, report) {
        Ok(promise) => {
            *world.stream(name)? = stream;
            world.promised(name, promise);
        }
        Err(e) => world.refused(&e),
    }
    Ok(())
}

/// One record as the facts that the poller makes of it.
fn fact(world: &World, stream: &mut Stream, record: &str) -> Result<Vec<Fact>, String> {
    let words: Vec<&str> = record.split_whitespace().collect();
    let at = OpId::new(stream.checkpoint.term + 1, 0);
    let tablets = |names: &str| names.split(',').map(|name| world.tablet(name)).collect::<Result<Vec<_>, _>>();
    let after = |stream: &Stream, words: &[&str]| -> Result<Vec<BranchId>, String> {
        let ["after", names] = words else {
            return if words.is_empty() { Ok(vec![]) } else { Err("after T,U".into()) };
        };
        let opened =
            names.split(',').map(|name| stream.opened.get(name).copied().ok_or(format!("no branch of {name}")));
        opened.map(|opened| Ok(BranchId { stream: stream.number, opened: opened? })).collect()
    };
    let known = |stream: &Stream, name: &str| stream.opened.get(name).copied();
    let fact = match words[..] {
        ["to", upto] => {
            stream.checkpoint = position(upto)?;
            return Ok(vec![]);
        }
        ["acknowledge", upto] => {
            stream.acknowledged = position(upto)?;
            return Ok(vec![]);
        }
        ["head", head] => {
            stream.head = number(head)?;
            return Ok(vec![]);
        }
        ["created", name] => Fact::Created { transaction: source(name), at },
        ["pending", name] => Fact::Pending { transaction: source(name) },
        ["wrote", name, records, into, ref rest @ ..] => {
            let opened = *stream.opened.entry(name.to_owned()).or_insert(at);
            let (records, tablets, after) = (number(records)?, tablets(into)?, after(stream, rest)?);
            Fact::Branch { transaction: source(name), opened, records, tablets, after, applying: None }
        }
        ["applying", name, ref of @ ..] => {
            let opened = *stream.opened.entry(name.to_owned()).or_insert(at);
            let records = match of {
                [] => None,
                ["of", records] => Some(number(records)?),
                _ => return Err("applying T of 2".into()),
            };
            let applying = Some(ApplyingFact { at, records, ..ApplyingFact::default() });
            let transaction = source(name);
            Fact::Branch { transaction, opened, records: 0, tablets: vec![], after: vec![], applying }
        }
        ["commit", name, "at", time, ref of @ ..] => {
            let involved = match of {
                [] => Involvement::OnlyThisStream,
                ["of", involved] => Involvement::Listed(
                    involved.split(',').map(|one| involved_stream(world, one)).collect::<Result<_, _>>()?,
                ),
                _ => return Err("commit T at 100 of a:2,b".into()),
            };
            Fact::Commit { transaction: source(name), branch: None, at, time: micros(time)?, involved }
        }
        ["aborted", name] => Fact::Aborted { transaction: source(name), branch: None, at },
        ["safe", time] => Fact::SafeTime { time: micros(time)? },
        ["not-running", ref names @ ..] => {
            Fact::NotRunning { transactions: names.iter().map(|name| source(name)).collect() }
        }
        ["split", ref children @ ..] => {
            let children =
                children.iter().map(|name| world.streams.get(*name).map_or(SourceTabletId(99), |s| s.number));
            Fact::Split { children: children.collect(), at }
        }
        [verb @ ("prepare" | "prepared"), name, records, into, ref rest @ ..] => {
            let (prepared_at, rest) = match rest {
                [time, rest @ ..] if time.starts_with('@') => (micros(&time[1..])?, rest),
                rest => (HybridTime::MIN, rest),
            };
            let after = after(stream, rest)?;
            let opened = if verb == "prepare" { at } else { *stream.opened.get(name).ok_or("it wrote nothing")? };
            stream.opened.insert(name.to_owned(), opened);
            let applying = Some(ApplyingFact { at, prepared_at, ..ApplyingFact::default() });
            let (records, tablets) = (number(records)?, tablets(into)?);
            Fact::Branch { transaction: source(name), opened, records, tablets, after, applying }
        }
        ["commit-prepared", name, "at", time] => {
            let branch = Some(known(stream, name).unwrap_or(OpId::new(0, 7)));
            let involved = Involvement::Discovered;
            Fact::Commit { transaction: source(name), branch, at, time: micros(time)?, involved }
        }
        ["rollback-prepared", name] => {
            let branch = Some(known(stream, name).unwrap_or(OpId::new(0, 7)));
            Fact::Aborted { transaction: source(name), branch, at }
        }
        ["late", name, records, into, prepared_at, "at", time, ref rest @ ..] => {
            let after = after(stream, rest)?;
            stream.opened.insert(name.to_owned(), at);
            let prepared_at = micros(prepared_at.trim_start_matches('@'))?;
            let applying = Some(ApplyingFact { at, prepared_at, ..ApplyingFact::default() });
            let (records, tablets, transaction) = (number(records)?, tablets(into)?, source(name));
            let (branch, involved, time) = (Some(at), Involvement::Discovered, micros(time)?);
            stream.checkpoint = at;
            return Ok(vec![
                Fact::Branch { transaction: transaction.clone(), opened: at, records, tablets, after, applying },
                Fact::Commit { transaction, branch, at, time, involved },
            ]);
        }
        ["commit-one", name, records, into, "at", time, ref rest @ ..] => {
            let after = after(stream, rest)?;
            stream.opened.insert(name.to_owned(), at);
            let applying = Some(ApplyingFact { at, ..ApplyingFact::default() });
            let (records, tablets, transaction) = (number(records)?, tablets(into)?, source(name));
            let (branch, involved, time) = (Some(at), Involvement::OnlyThisStream, micros(time)?);
            stream.checkpoint = at;
            return Ok(vec![
                Fact::Branch { transaction: transaction.clone(), opened: at, records, tablets, after, applying },
                Fact::Commit { transaction, branch, at, time, involved },
            ]);
        }
        _ => return Err("no such record".into()),
    };
    stream.checkpoint = at;
    Ok(vec![fact])
}

fn involved_stream(world: &World, text: &str) -> Result<InvolvedStream, String> {
    let (name, records) = match text.split_once(':') {
        Some((name, records)) => (name, Some(number(records)?)),
        None => (text, None),
    };
    let stream = world.streams.get(name).ok_or_else(|| format!("no stream {name}"))?.number;
    Ok(InvolvedStream { stream, records })
}

/// `T` is the first use of an id, `T#1` the next.
fn source(name: &str) -> SourceTransactionId {
    match name.split_once('#') {
        Some((id, incarnation)) => SourceTransactionId {
            incarnation: incarnation.parse().unwrap_or_default(),
            ..SourceTransactionId::first(id.as_bytes())
        },
        None => SourceTransactionId::first(name.as_bytes()),
    }
}

fn number(text: &str) -> Result<u64, String> {
    text.parse().map_err(|_| format!("{text} is no number"))
}

fn position(text: &str) -> Result<OpId, String> {
    Ok(OpId::new(number(text)?, 0))
}

fn micros(text: &str) -> Result<HybridTime, String> {
    Ok(HybridTime::from_micros(number(text)?))
}
