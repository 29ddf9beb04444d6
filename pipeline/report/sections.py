"""The sections of the page: each a table or figure with a sentence on how to read it. Torch-free."""

from __future__ import annotations

import statistics
import time
from collections import Counter
from pathlib import Path
from typing import Any

from markupsafe import Markup

from pipeline.evaluation.leaderboard import SETTING
from pipeline.evaluation.leaderboard_text import method, shown_settings
from pipeline.report import figures, label_figures
from pipeline.report.answer import answer, what_next
from pipeline.report.facts import LABELS, CellFacts, Facts, smallest
from pipeline.report.page import Table, cards, fold, glossary, heading, note, paragraph, plain, source, top
from pipeline.report.selected import selected_cell
from pipeline.report.spending import clock
from pipeline.report.words import WORDS
from pipeline.spec.names import short, text
from pipeline.spec.question import question
from pipeline.storage.files import display_path
from pipeline.storage.run_dir import RunDir
from pipeline.storage.typed import typed

_SHOWN = (
    "f1_micro", "f1_macro", "f1_weighted", "f1_samples_empty0", "f1_samples_empty1", "map_macro",
    "label_accuracy", "exact_match", "f1_micro_at50", "f1_micro_labelled",
)  # fmt: skip
_CELLS = (
    "cell", "state", "epochs", "best epoch", "device", "images/s", "training", "units", "command",
)  # fmt: skip
_RECIPE = (
    "train.model.name", "train.optimizer.name", "train.optimizer.lr", "train.schedule.name", "train.loss.name",
    "train.batch_size", "train.image_px", "train.epochs", "train.seed",
)  # fmt: skip
_SPECS = 10  # cells whose full spec is in the page


class Report:
    """Sections of one experiment's page, with the plots and tables they were made of."""

    def __init__(self, facts: Facts) -> None:
        self.facts = facts
        self.plots = figures.Plots()
        self.tables: dict[str, Table] = {}
        self.names = frozenset(cell.name for cell in facts.trained)

    def head(self) -> Markup:
        """Question, date, answer and what to do next; then what was selected, tested and spent."""
        facts = self.facts
        asked = question(facts.experiment.path.with_suffix(".yaml"))
        made = f"{time.strftime('%Y-%m-%d %H:%M')}, made from {facts.selection.made_by or 'what is there so far'}"
        return top(asked, made, answer(facts), what_next(facts)) + self._cards()

    def _cards(self) -> Markup:
        facts, best = self.facts, self.facts.best
        states = Counter(cell.state for cell in facts.trained)
        entries = [("Cells", f"{states['done']} of {len(facts.trained)} done", plain(states))]
        if best is not None and (value := best.value(facts.by)) is not None:
            how = {"user": "picked by hand", "ensemble": "mean scores of several cells"}.get(
                facts.selection.picked_by, "the best cell of the best recipe, on validation"
            )
            interval = best.interval(facts.by)
            recipe = ", ".join(
                f"{short(key)} {text(best.settings[key])}" for key in _RECIPE if key in best.settings
            )
            entries = [
                ("Selected for the submission", best.name, "; ".join(filter(None, (how, recipe)))),
                (f"{facts.by}, validation", f"{value:.4f}", f"95 % interval {interval}" if interval else ""),
                *entries,
            ]
        if facts.test:
            metric = facts.test["metrics"].get(facts.by, {})
            small = (
                f"95 % interval {metric['lo']:.4f} – {metric['hi']:.4f}; {facts.test['images']} test images"
            )
            cells = ", ".join(facts.test["cells"])
            entries.insert(
                2, (f"{facts.by}, test", f"{metric['value']:.4f}", f"{small}; {cells}{facts.test['note']}")
            )
        hours = sum(cell.hours for cell in facts.cells)
        if hours:
            gpu = sum(cell.hours for cell in facts.cells if cell.device.startswith("cuda"))
            spent = ", ".join(filter(None, [f"{gpu:.2f} GPU hours" if gpu else "no GPU", facts.spent]))
            entries.append(("Training", clock(hours), spent))
        return cards(entries)

    def sections(self) -> list[tuple[str, Markup]]:
        """(heading, HTML) in the order of the page."""
        return [
            ("Leaderboard", self._leaderboard()),
            ("Training", self._training()),
            ("Settings", self._settings()),
            *selected_cell(self.facts, self.plots, self._table),
            ("Data", self._data()),
            ("Cells", self._cells()),
            ("Provenance", self._provenance()),
            ("Words", glossary(WORDS)),
        ]

    def _table(self, name: str, table: Table, shown_rows: int = 50, on_page: Table | None = None) -> Markup:
        self.tables[name] = table
        return (on_page or table).html(shown_rows) if table.rows else Markup()

    def _leaderboard(self) -> Markup:
        facts = self.facts
        keys = shown_settings(facts.rows)
        columns = [facts.by, *(name for name in _SHOWN if name != facts.by)]
        rows, kinds = [], []
        for cell in facts.cells:
            settings = [cell.row.get(SETTING + key, "") for key in keys]
            if cell.value(facts.by) is None:
                rows.append([cell.name, _state(cell, facts), "", *settings, *[""] * (len(columns) - 1)])
                kinds.append("failed")
                continue
            values = [f"{float(cell.row[name]):.4f}" if cell.row.get(name) else "" for name in columns]
            rows.append([cell.name, values[0], cell.interval(facts.by), *settings, *values[1:]])
            earlier = "earlier" if cell.row.get("in_grid") == "no" else ""
            kinds.append("best" if facts.best and cell.name == facts.best.name else earlier)
        for row in facts.baselines:
            values = [f"{float(row[name]):.4f}" if row.get(name) else "" for name in columns]
            rows.append([row["cell"], values[0], "", *[""] * len(keys), *values[1:]])
            kinds.append("baseline")
        head = ["cell", facts.by, "95 %", *map(short, keys), *columns[1:]]
        html = self._table("leaderboard", Table(head, rows, kinds, self.names))
        plot = self.plots.add(
            "leaderboard", "cells with their 95 % intervals", lambda: figures.leaderboard(facts)
        )
        ranked = any(cell.row for cell in facts.cells)
        said = (
            "All validation images under the spec's decision rule (cross-fitted where thresholds were tuned). "
            "_at50: threshold 0.5. _labelled: only images that have a label. An image without any true or predicted "
            "label counts 0 in empty0, 1 in empty1. 95 %: bootstrap over the images; it does not cover the luck of "
            "training, and covers less for average precision of labels with few images."
            if ranked
            else "No cell is ranked yet: the table shows each cell's status and its best epoch so far at threshold 0.5."
        )
        earlier = (
            note("Faint rows are complete cells of an earlier spec or --set.")
            if "earlier" in kinds
            else Markup()
        )
        mixed = facts.selection.mixed_hardware
        earlier += note(f"{mixed[0].upper()}{mixed[1:]}.") if mixed else Markup()
        return plot + self._seeds() + html + note(said) + earlier + self._comparisons()

    def _seeds(self) -> Markup:
        names = [self.facts.by, *(name for name in _SHOWN[:6] if name != self.facts.by)]
        sign = 1 if self.facts.lower_is_better else -1
        ordered = sorted(
            self.facts.seeds, key=lambda row: sign * float(row.get(f"{self.facts.by}_mean") or 0)
        )
        rows = [
            [row["cell"], row["seeds"], row.get("splits", ""), *(_mean_sd(row, name) for name in names)]
            for row in ordered
        ]
        html = self._table("seeds", Table(["recipe", "runs", "splits", *names], rows), 30)
        return html and heading("Recipes over seeds and splits: mean ± standard deviation") + html

    def _comparisons(self) -> Markup:
        columns = ("a", "b", "metric", "difference", "95 %", "p", "p corrected", "covers", "verdict")
        rows = [
            [
                *(row["a"], row["b"], row["metric"], f"{float(row['difference']):+.4f}"),
                f"{float(row['lo']):+.4f} … {float(row['hi']):+.4f}",
                *(
                    f"{float(row['p']):.3g}",
                    f"{float(row['p_corrected']):.3g}",
                    row["covers"],
                    row["verdict"],
                ),
            ]
            for row in self.facts.comparisons
        ]
        html = self._table("comparisons", Table(columns, rows), 15)
        return html and heading("Which differences are sure?") + html + note(
            f"{method(self.facts.comparisons)}."
        )

    def _training(self) -> Markup:
        facts = self.facts
        svg = self.plots.add("curves", "training curves of all cells", lambda: figures.curves(facts))
        if not svg:
            return note("No epoch is finished yet.")
        metric = f"validation/{facts.curve_by}"
        tags = ("train/loss", "validation/loss", metric, "train/lr", "train/images_per_s")
        rows = [
            [cell.name, str(row["epoch"]), *(f"{row[tag]:.6g}" if tag in row else "" for tag in tags)]
            for cell in facts.cells
            for row in cell.epochs
        ]
        self.tables["curves"] = Table(["cell", "epoch", *tags], rows)
        return svg + note(
            "The best cells in colour, the others grey. A training loss that falls while the validation loss rises "
            "is over-fitting. Validation metrics of decisions use threshold 0.5. Hover for names."
        )

    def _settings(self) -> Markup:
        facts = self.facts
        svg = self.plots.add("settings", f"{facts.by} by setting", lambda: figures.effects(facts))
        rows = []
        for key, groups in facts.axes.items():
            for name, cells in groups.items():
                values = [value for cell in cells if (value := cell.value(facts.by)) is not None]
                ranked = sorted(values, reverse=not facts.lower_is_better)
                if ranked:
                    texts = [f"{number:.4f}" for number in (statistics.mean(ranked), ranked[0], ranked[-1])]
                    rows.append([key, name, str(len(ranked)), *texts])
        table = self._table("settings", Table(("setting", "value", "cells", "mean", "best", "worst"), rows))
        said = "Each dot is a cell, the bar their mean. Settings that always change together share a panel."
        return svg and svg + note(said) + fold("as a table", table)

    def _data(self) -> Markup:
        counts, report = self.facts.split_counts(), self.facts.wrangle_report()
        parts: list[Markup] = []
        if counts:
            labels = list(next(iter(counts.values())).get("labels", {}))
            rows = [
                [name, *map(plain, [part["images"], part["negative"], *part.get("labels", {}).values()])]
                for name, part in counts.items()
            ]
            whole = Table(["split", "images", "negative", *labels], rows)
            in_validation = self.facts.validation_counts()
            rarest = smallest([in_validation.get(label, 0) for label in labels])
            on_page = whole.only([0, 1, 2, *(3 + k for k in rarest)])
            parts.append(self._table("splits", whole, on_page=on_page))
            if len(labels) > LABELS:
                all_in = f"all {len(labels)} are in {display_path(self.facts.selection.split or Path('-'))}"
                parts.append(note(f"The {LABELS} labels rarest in validation; {all_in}."))
        if report:
            images = int(report["packed"])
            svg = self.plots.add(
                "label_counts",
                "images per label",
                lambda: label_figures.label_counts(report["label_counts"], images),
            )
            sentences = [f"{images} of {report['images']} images are packed"]
            if report.get("negative_fraction") is not None:
                sentences.append(f"{100 * report['negative_fraction']:.1f} % are negative images (no label)")
                sentences.append(f"{report['labels_per_image']:.2f} labels an image")
            parts += [paragraph(f"{'; '.join(sentences)}."), svg, self._problems(report)]
        return Markup().join(parts)

    def _problems(self, report: dict[str, Any]) -> Markup:
        rows = []
        for key, entry in report.items():
            if isinstance(entry, dict) and "examples" in entry:
                count = entry.get("count", entry.get("groups", 0))
                examples = [
                    e if isinstance(e, str) else " = ".join(map(str, e)) for e in entry["examples"][:5]
                ]
                rows.append([key.replace("_", " "), str(count), "; ".join(examples)[:300]])
        return self._table("problems", Table(("problem", "number", "for example"), rows))

    def _cells(self) -> Markup:
        facts = self.facts
        rows = []
        for cell in facts.trained:
            best = cell.best_epoch(facts.curve_by)
            speeds = [value for _, value in cell.curve("train/images_per_s")]
            spec = display_path(facts.experiment.path / cell.name / "spec.yaml")
            epoch, of = cell.epochs[-1]["epoch"] if cell.epochs else 0, cell.settings.get("train.epochs", "?")
            speed = f"{statistics.median(speeds):.0f}" if speeds else ""
            done = [
                f"{epoch}/{of}",
                f"{best[0]} ({best[1]:.4f})" if best else "",
                cell.device,
                speed,
                clock(cell.hours),
            ]
            units = cell.spending.text(cell.hours)
            rows.append([cell.name, cell.state, *done, units, typed("grid", spec)])
        table = self._table("cells", Table(_CELLS, rows, is_target=True), 20)
        specs = Markup().join(
            fold(f"spec of {cell.name}", source(path.read_text(encoding="utf-8")))
            for cell in facts.cells[:_SPECS]
            if (path := RunDir(facts.experiment.path / cell.name).spec).exists()
        )
        said = (
            "Each cell is a folder of this name beside this page. Training time: steps without scoring and start-up. "
            "Units: what Slurm accounted for the cell's jobs; with a ~, training time x price. "
            "The command trains the cell where it is missing; elsewhere, save its spec as a file and name that. Equal "
            "spec, data and code give equal weights on a CPU."
        )
        return table + note(said) + specs

    def _provenance(self) -> Markup:
        seen: Counter[tuple[tuple[str, str], ...]] = Counter()
        for cell in self.facts.cells:
            facts = cell.provenance
            if facts:
                code = facts.get("code", {})
                changes = " + changes" if code.get("uncommitted") else ""
                texts = {"commit": (code.get("commit") or "none")[:12] + changes}
                texts |= {"code": str(code.get("digest"))[:12]}
                texts |= {name: str(facts.get(name)) for name in ("host", "machine")}
                texts |= {name: plain(facts.get(name, {})) for name in ("execution", "hardware")}
                texts |= {"python": str(facts.get("python")), "modules": ", ".join(facts.get("modules", ()))}
                texts |= {"packages": plain(facts.get("packages", {})), "data": str(facts.get("data"))[:12]}
                seen[tuple(texts.items())] += 1
        rows = [[str(count), *(text for _, text in texts)] for texts, count in seen.most_common()]
        names = [name for name, _ in next(iter(seen), ())]
        return self._table("provenance", Table(["cells", *names], rows), 10)


def _state(cell: CellFacts, facts: Facts) -> str:
    said = cell.state + (f": {cell.error}" if cell.error else "")
    best = cell.best_epoch(facts.curve_by)
    if not best:
        return said
    epochs = f"epoch {cell.epochs[-1]['epoch']}/{cell.settings.get('train.epochs', '?')}"
    return f"{said}, {epochs}, best {facts.curve_by} {best[1]:.4f} in epoch {best[0]}"


def _mean_sd(row: dict[str, str], name: str) -> str:
    mean, spread = row.get(f"{name}_mean"), row.get(f"{name}_sd")
    return f"{float(mean):.4f} ± {float(spread or 0):.4f}" if mean else ""
