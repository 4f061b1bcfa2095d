//! One file with its mutants, each behind its switch.

use proc_macro2::{LineColumn, Span};
use quote::quote;
use std::collections::BTreeSet;
use syn::spanned::Spanned;
use syn::visit_mut::{self, VisitMut};
use syn::{Arm, BinOp, Block, Expr, ReturnType, Signature, UnOp, parse_quote, parse_str};

/// What stands before a mutant's number.
pub const SWITCH: &str = "crate::planted::mutant(";

/// A mutant, as `cargo mutants` lists it.
#[derive(Clone, Debug)]
pub struct Mutant {
    /// Its number among all.
    pub number: u32,
    /// Its file.
    pub file: String,
    /// What it does, for people.
    pub name: String,
    /// What kind it is.
    pub genre: String,
    /// The line and column, from 1, at which what it replaces begins.
    pub from: (usize, usize),
    /// Where that ends.
    pub to: (usize, usize),
    /// What stands there instead.
    pub replacement: String,
}

/// The file with these mutants, and the numbers of those that could be placed.
pub fn rewritten(source: &str, mutants: Vec<Mutant>) -> (String, BTreeSet<u32>) {
    let mut file = syn::parse_file(source).unwrap();
    let mut rewrite = Rewrite { mutants, placed: BTreeSet::new(), constant: false };
    rewrite.visit_file_mut(&mut file);
    (prettyplease::unparse(&file), rewrite.placed)
}

struct Rewrite {
    mutants: Vec<Mutant>,
    placed: BTreeSet<u32>,
    /// Inside a `const fn`, where no switch can be asked.
    constant: bool,
}

fn place(at: LineColumn) -> (usize, usize) {
    (at.line, at.column + 1)
}

impl Rewrite {
    /// The mutants of a genre for which this holds, which are placed by that.
    fn take(&mut self, genre: &str, is: impl Fn(&Mutant) -> bool) -> Vec<Mutant> {
        if self.constant {
            return Vec::new();
        }
        let placed = &self.placed;
        let found = self.mutants.iter().filter(|m| m.genre == genre && !placed.contains(&m.number) && is(m));
        let found: Vec<Mutant> = found.cloned().collect();
        self.placed.extend(found.iter().map(|mutant| mutant.number));
        found
    }

    fn begins_at(&mut self, genre: &str, span: Span) -> Vec<Mutant> {
        let at = place(span.start());
        self.take(genre, |mutant| mutant.from == at)
    }

    fn function(&mut self, signature: &Signature, block: &mut Block) {
        let (from, to) = (place(block.span().start()), place(block.span().end()));
        let constant = std::mem::replace(&mut self.constant, signature.constness.is_some());
        visit_mut::visit_block_mut(self, block);
        let opaque = matches!(&signature.output, ReturnType::Type(_, of) if quote!(#of).to_string().contains("impl "));
        if !opaque {
            let values = self.take("FnValue", |mutant| from <= mutant.from && mutant.to <= to);
            for (place, mutant) in values.into_iter().enumerate() {
                let number = mutant.number;
                match parse_str::<Expr>(&mutant.replacement) {
                    Ok(value) => block
                        .stmts
                        .insert(place, parse_quote! { if crate::planted::mutant(#number) { return #value; } }),
                    Err(_) => drop(self.placed.remove(&number)),
                }
            }
        }
        self.constant = constant;
    }
}

/// Whether a condition binds something: then nothing can stand around it.
fn binds(condition: &Expr) -> bool {
    match condition {
        Expr::Let(_) => true,
        Expr::Binary(binary) if matches!(binary.op, BinOp::And(_)) => binds(&binary.left) || binds(&binary.right),
        _ => false,
    }
}

impl VisitMut for Rewrite {
    fn visit_item_fn_mut(&mut self, item: &mut syn::ItemFn) {
        self.function(&item.sig, &mut item.block);
    }

    fn visit_impl_item_fn_mut(&mut self, item: &mut syn::ImplItemFn) {
        self.function(&item.sig, &mut item.block);
    }

    fn visit_item_const_mut(&mut self, _: &mut syn::ItemConst) {}

    fn visit_item_static_mut(&mut self, _: &mut syn::ItemStatic) {}

    fn visit_impl_item_const_mut(&mut self, _: &mut syn::ImplItemConst) {}

    fn visit_type_mut(&mut self, _: &mut syn::Type) {}

    fn visit_expr_repeat_mut(&mut self, repeat: &mut syn::ExprRepeat) {
        self.visit_expr_mut(&mut repeat.expr);
    }

    fn visit_expr_mut(&mut self, expr: &mut Expr) {
        let before = expr.clone();
        visit_mut::visit_expr_mut(self, expr);
        if binds(&before) {
            return;
        }
        let mutants = match &before {
            Expr::Binary(binary) => self.begins_at("BinaryOperator", binary.op.span()),
            Expr::Unary(unary) if matches!(unary.op, UnOp::Not(_) | UnOp::Neg(_)) => {
                self.begins_at("UnaryOperator", unary.op.span())
            }
            _ => return,
        };
        for Mutant { number, replacement, .. } in mutants {
            // The operands as they were: only one mutant is turned on at a time.
            let instead: Option<Expr> = match before.clone() {
                Expr::Binary(mut binary) => parse_str::<BinOp>(&replacement).ok().map(|op| {
                    binary.op = op;
                    Expr::Binary(binary)
                }),
                Expr::Unary(unary) => Some(*unary.expr),
                _ => None,
            };
            match instead {
                Some(instead) => {
                    *expr = parse_quote!((if crate::planted::mutant(#number) { #instead } else { #expr }));
                }
                None => drop(self.placed.remove(&number)),
            }
        }
    }

    fn visit_arm_mut(&mut self, arm: &mut Arm) {
        let (span, guard_span) = (arm.span(), arm.guard.as_ref().map(|(_, guard)| guard.span()));
        visit_mut::visit_arm_mut(self, arm);
        if arm.guard.as_ref().is_some_and(|(_, guard)| binds(guard)) {
            return;
        }
        for Mutant { number, replacement, .. } in
            guard_span.map(|span| self.begins_at("MatchArmGuard", span)).unwrap_or_default()
        {
            let Some((_, guard)) = &mut arm.guard else { continue };
            **guard = if replacement == "true" {
                parse_quote!((crate::planted::mutant(#number) || (#guard)))
            } else {
                parse_quote!((!crate::planted::mutant(#number) && (#guard)))
            };
        }
        for Mutant { number, .. } in self.begins_at("MatchArm", span) {
            let guard: Expr = match &arm.guard {
                Some((_, guard)) => parse_quote!(!crate::planted::mutant(#number) && (#guard)),
                None => parse_quote!(!crate::planted::mutant(#number)),
            };
            arm.guard = Some((Default::default(), Box::new(guard)));
        }
    }
}
