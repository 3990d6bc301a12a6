"""The second phase of a method that searches: which subnet of a trained supernet?"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, ClassVar

import msgspec
import torch
from mmengine.dist import is_main_process
from mmengine.runner import BaseLoop, Runner

from mmpetl.core import PETLError, delta_state, fingerprint, tensor_digests
from mmpetl.core.boundary import checked, read_json_lines
from mmpetl.core.supernet import Evolution, Space, Subnet, supernet_of
from mmpetl.engine.evolution import Candidate, Search, front, rank
from mmpetl.engine.files import AtomicLocalBackend
from mmpetl.engine.hooks.common import plain_model
from mmpetl.engine.loops.phase import Phase
from mmpetl.engine.loops.supernet import SupernetLoop
from mmpetl.engine.loops.training import checkpoint_of, load_trained

FORMAT = 1
"""Number of the layout of ``search.jsonl``."""


class SearchLoop(Phase, BaseLoop):
    """Searches the best subnet of a trained supernet under a parameter budget.

    It is the ``train_cfg`` of a run that trains nothing: candidates inherit their
    weights from the supernet and are scored on ``val_dataloader`` by ``val_evaluator``.
    In the work folder it leaves

    - ``search.jsonl``: settings, every candidate with size and score, and a line per
      generation. It is written anew, whole or not at all, after each generation;
      ``--resume`` continues from it to the result of an uninterrupted search.
    - ``search.png``: score against parameters, and the front.
    - ``found.json``: the best subnet, for the method's ``found``.

    Args:
        runner: The runner.
        dataloader: Training data, which the search does not read.
        supernet: Checkpoint of the supernet, or the work folder of its run.
        limit: The most parameters a subnet may have, heads excluded; None for
            :attr:`budget`.
        at_least: The fewest; None for :attr:`least`.
        evolution: Fields of :attr:`evolution` that differ from its defaults.
        seed: Seed of all draws.
        metric: What ``val_evaluator`` reports and the search maximises.
        keep_batches: Whether the validation images stay in memory, so that they are
            read once instead of once per candidate.

    Raises:
        PETLError: No supernet, no validation data, no such metric, a budget that no
            subnet meets, or resuming a search that was begun with other settings.

    Attributes:
        evolution: Settings of the method's search, with its published defaults.
        budget: The most parameters a subnet may have by default.
        least: The fewest.
    """

    phase = 'search'
    evolution: ClassVar[type[Evolution]] = Evolution
    budget: ClassVar[int]
    least: ClassVar[int] = 0

    @classmethod
    def prepare(
        cls, config: Any, settings: Mapping[str, Any], folders: Mapping[str, Path]
    ) -> None:
        config.train_cfg = {
            'type': f'mmpetl.{cls.__name__}',
            'supernet': str(folders[SupernetLoop.phase]),
            **settings,
        }
        config.param_scheduler = None
        config.resume = True  # from its own record, where it has begun one

    @classmethod
    def cost(
        cls, settings: Mapping[str, Any], max_epochs: int | None
    ) -> tuple[float, int]:
        plan = cls.evolution(**settings.get('evolution', {}))
        children = plan.mutations + plan.crossovers
        return 0.0, plan.population + plan.generations * children

    def __init__(
        self,
        runner: Runner,
        dataloader: Any,
        supernet: str,
        limit: int | None = None,
        at_least: int | None = None,
        evolution: Mapping[str, Any] | None = None,
        seed: int = 0,
        metric: str = 'accuracy/top1',
        keep_batches: bool = True,
    ) -> None:
        super().__init__(runner, dataloader)
        known = self.evolution.__dataclass_fields__
        for key in evolution or ():
            if key not in known:
                raise PETLError(
                    f'the search has no setting {key!r}; it takes: {", ".join(known)}'
                )
        self.supernet = supernet
        self.metric = metric
        self.keep_batches = keep_batches
        self.net = supernet_of(plain_model(runner))
        self.search = Search(
            self.net.space,
            self.net.size,
            self.budget if limit is None else limit,
            self.least if at_least is None else at_least,
            self.evolution(**(evolution or {})),
            seed,
        )
        self.generation = 0
        self._batches: Sequence[Any] | None = None

    # What hooks and the runner ask of a loop that takes the place of training.
    @property
    def epoch(self) -> int:
        """Generations that are scored."""
        return self.generation

    @property
    def iter(self) -> int:
        """The same; a generation is one step."""
        return self.generation

    @property
    def max_epochs(self) -> int:
        """Generations, the random one included."""
        return self.search.settings.generations + 1

    @property
    def max_iters(self) -> int:
        """The same."""
        return self.max_epochs

    @property
    def log(self) -> Path:
        """The record of the search."""
        return Path(self.runner.work_dir) / 'search.jsonl'

    def run(self) -> Candidate:
        """Search, and write what was found.

        Returns:
            The best candidate.
        """
        if self.runner.val_loop is None:
            raise PETLError(
                'the search scores subnets on validation data, and there are none; set '
                'val_dataloader, val_evaluator and val_cfg'
            )
        resumes = self.runner._resume and self.log.is_file()
        scored: list[Candidate] = []
        if resumes:
            # Before the supernet is read: another space has another supernet.
            scored, self.generation = self._read(self._plan())
        file = checkpoint_of('a supernet', self.supernet, 'train_cfg.supernet')
        load_trained(self.runner, file)
        model = plain_model(self.runner)
        weights = {
            'base': fingerprint(model),
            'supernet': _digest(delta_state(model)),
        }
        settings = self._plan() | weights
        if resumes:
            self._read(settings)
            self.runner.logger.info(
                f'resuming the search after {self.generation} generations, '
                f'{len(scored)} subnets'
            )
        self.runner.model.eval()

        def after_generation(generation: int, scored: list[Candidate]) -> None:
            self.generation = generation + 1
            best = rank(scored)[0]
            new = sum(c.generation == generation for c in scored)
            self.runner.logger.info(
                f'generation {generation} of {self.max_epochs - 1}: {new} new subnets, '
                f'best {self.metric} {best.score:.2f} with {best.params:,} parameters'
            )
            if is_main_process():
                write_search(self.log, settings, scored, self.generation)

        scored = self.search.run(
            self.evaluate, scored, self.generation, after_generation
        )
        best = rank(scored)[0]
        if is_main_process():
            self._finish(best, scored, settings)
        return best

    @torch.no_grad()
    def evaluate(self, subnet: Subnet) -> float:
        """Score of a subnet on the validation data."""
        loop = self.runner.val_loop
        if self._batches is None:
            self._batches = (
                list(loop.dataloader) if self.keep_batches else loop.dataloader
            )
        self.net.activate(subnet)
        for batch in self._batches:
            outputs = self.runner.model.val_step(batch)
            loop.evaluator.process(data_samples=outputs, data_batch=batch)
        metrics = loop.evaluator.evaluate(len(loop.dataloader.dataset))
        if self.metric not in metrics:
            raise PETLError(
                f'the search maximises {self.metric!r}, which val_evaluator does not '
                f'report; it reports: {", ".join(metrics)}'
            )
        return float(metrics[self.metric])

    def _read(self, settings: Mapping[str, Any]) -> tuple[list[Candidate], int]:
        return read_search(self.log, settings, self.net.space)

    def _plan(self) -> dict[str, Any]:
        """All that the result depends on, the weights apart."""
        plan = self.search
        return {
            'format': FORMAT,
            **plan.space.facts(),
            'limit': plan.limit,
            'at_least': plan.at_least,
            **asdict(plan.settings),
            'seed': plan.seed,
            'metric': self.metric,
            'samples': len(self.runner.val_loop.dataloader.dataset),
        }

    def _finish(
        self,
        best: Candidate,
        scored: Sequence[Candidate],
        settings: Mapping[str, Any],
    ) -> None:
        folder = self.log.parent
        draw_search(folder / 'search.png', scored, self.search.limit, self.metric)
        found = {
            **best.subnet.as_dict(),
            'params': best.params,
            'score': best.score,
            'search': settings,
        }
        text = json.dumps(found, indent=2) + '\n'
        AtomicLocalBackend().put_text(text, folder / 'found.json')
        self.runner.logger.info(
            f'found a subnet with {best.params:,} parameters and {self.metric} '
            f'{best.score:.2f}: {folder / "found.json"}'
        )


def write_search(
    path: Path,
    settings: Mapping[str, Any],
    scored: Sequence[Candidate],
    generations: int,
) -> None:
    """The record of a search as JSON lines, whole or not at all."""
    lines: list[Mapping[str, Any]] = [{'settings': settings}]
    for generation in range(generations):
        so_far = [c for c in scored if c.generation <= generation]
        new = [c for c in so_far if c.generation == generation]
        lines += [
            {
                'generation': c.generation,
                'origin': c.origin,
                **c.subnet.as_dict(),
                'params': c.params,
                'score': c.score,
            }
            for c in new
        ]
        best = rank(so_far)[0]
        lines.append(
            {
                'done': generation,
                'new': len(new),
                'best_score': best.score,
                'best_params': best.params,
            }
        )
    text = ''.join(json.dumps(line) + '\n' for line in lines)
    AtomicLocalBackend().put_text(text, path)


def read_search(
    path: Path, settings: Mapping[str, Any], space: Space
) -> tuple[list[Candidate], int]:
    """What an interrupted search has scored, and how many generations that is.

    Raises:
        PETLError: It was begun with other settings.
    """
    scored, generations = [], 0
    for line in read_json_lines(path, dict[str, Any], 'journal of a search'):
        if isinstance(line, PETLError):
            # It is written whole or not at all, and every line counts.
            raise PETLError(f'{line}; remove {path} to search anew')
        if 'settings' in line:
            _check_same(checked(line, _Settings, f'{path}').settings, settings, path)
        elif 'done' in line:
            generations = checked(line, _Done, f'{path}').done + 1
        else:
            one = checked(line, _Scored, f'{path}')
            subnet = space.read(line, f'{path}')
            scored.append(
                Candidate(one.generation, one.origin, subnet, one.params, one.score)
            )
    return scored, generations


class _Settings(msgspec.Struct):
    settings: dict[str, Any]


class _Done(msgspec.Struct):
    done: Annotated[int, msgspec.Meta(ge=0)]


class _Scored(msgspec.Struct):
    generation: Annotated[int, msgspec.Meta(ge=0)]
    origin: str
    params: Annotated[int, msgspec.Meta(ge=0)]
    score: float


def _check_same(begun: Mapping[str, Any], now: Mapping[str, Any], path: Path) -> None:
    # More or fewer generations do not change those that are done.
    for key in now:
        if key != 'generations' and begun.get(key) != now[key]:
            raise PETLError(
                f'the search in {path} was begun with {key}={begun.get(key)}, now it '
                f'is {now[key]}; resume with the same, or search in another work folder'
            )


def draw_search(
    path: Path, scored: Sequence[Candidate], limit: int, metric: str
) -> None:
    """Score against parameters, coloured by generation, with the front."""
    import matplotlib

    matplotlib.use('Agg')
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(8, 5), layout='constrained')
    dots = axes.scatter(
        [c.params / 1000 for c in scored],
        [c.score for c in scored],
        c=[c.generation for c in scored],
        cmap='viridis',
        s=18,
        alpha=0.8,
    )
    figure.colorbar(dots, ax=axes, label='generation')
    edge = front(scored)
    axes.step(
        [c.params / 1000 for c in edge],
        [c.score for c in edge],
        where='post',
        color='tab:red',
        lw=1.5,
        label='front',
    )
    best = rank(scored)[0]
    axes.plot(
        best.params / 1000,
        best.score,
        '*',
        ms=16,
        color='tab:red',
        mec='black',
        label=f'found: {best.params:,} parameters, {best.score:.1f}',
    )
    if limit <= 1.5 * max(c.params for c in scored):
        axes.axvline(limit / 1000, color='grey', ls='--', label=f'budget {limit:,}')
    axes.set_xlabel('parameters of the subnet, thousands (head excluded)')
    axes.set_ylabel(f'{metric} on validation data')
    axes.set_title(f'{len(scored)} subnets with the weights of the supernet')
    axes.grid(alpha=0.3)
    figure.legend(loc='outside lower center', ncols=3)
    figure.savefig(path, dpi=130)
    plt.close(figure)


def _digest(state: Mapping[str, torch.Tensor]) -> str:
    """One digest of all tensors."""
    import hashlib

    parts = sorted(tensor_digests(state).items())
    return hashlib.sha256(repr(parts).encode()).hexdigest()[:16]
