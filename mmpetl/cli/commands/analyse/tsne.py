"""t-SNE of the features of a run's base and its tuned model, side by side.

Example: mmpetl analyse tsne \
    work_dirs/lora/mini/digits --out work_dirs/pictures/tsne.png

Both models see the same points through the same preprocessing. Under each panel stand
k-nearest-neighbour accuracy and silhouette, in the space of the features and in the
picture. Writes the picture, its caption (.json) and every number (.numbers.json).
"""

from __future__ import annotations

from collections.abc import Sequence

from mmpetl import analysis
from mmpetl.analysis.pictures import Caption, draw_tsne, picture_stem, save_picture
from mmpetl.analysis.sources import add_run_arguments, open_run
from mmpetl.apis import cli_errors
from mmpetl.cli.parsing import CommandParser
from mmpetl.core import PETLError


def make_parser() -> CommandParser:
    parser = CommandParser(__name__)
    add_run_arguments(parser, out='work_dirs/pictures/tsne.png', points=1000)
    parser.add_argument('--perplexity', type=float, default=30.0)
    parser.add_argument('--neighbours', type=int, default=20, help='k of k-NN (20)')
    parser.add_argument(
        '--engine',
        choices=('sklearn', 'opentsne'),
        default='sklearn',
        help='opentsne suits many points and is installed apart',
    )
    return parser


def main(argv: Sequence[str] | None = None) -> None:
    args = make_parser().parse_args(argv)
    with cli_errors():
        picture_stem(args.out)
        pair, data = open_run(args)
        points = analysis.load_points(pair.config, args.points, args.split, args.seed)
        models = {'base': pair.base, pair.name: pair.tuned}
        found, labels = analysis.features_of_points(
            tuple(models.values()), points, args.batch_size
        )
        if labels is None:
            raise PETLError(
                f'the points of {data} have no class each, so t-SNE has nothing to '
                'colour; give a run of a classification task'
            )
        made = analysis.compare_embeddings(
            {name: f.final for name, f in zip(models, found, strict=True)},
            labels,
            args.perplexity,
            args.neighbours,
            args.seed,
            args.engine,
        )
        figure = draw_tsne(made, labels, points.classes, args.neighbours)
        k, n = args.neighbours, len(points)
        told = '; '.join(
            f'{name}: {k}-NN accuracy {e.original.knn:.1f} % and silhouette '
            f'{e.original.silhouette:.3f} of the features, {e.flat.knn:.1f} % and '
            f'{e.flat.silhouette:.3f} in the picture'
            for name, e in made.items()
        )
        caption = Caption(
            title=f't-SNE of features: base and {pair.name} on {data}',
            caption=(
                f'{n} points of the {args.split} set, the same in both panels, '
                f'perplexity {args.perplexity:g}, PCA start, seed {args.seed}; '
                f'{pair.method}. Distances between groups mean little; the scores '
                'under each panel say what holds in the original space.'
            ),
            alt=f'Two scatter plots of {n} points coloured by class. {told}.',
            section='Features',
        )
        numbers = {
            'method': pair.method,
            'split': args.split,
            'indices': list(points.indices),
            'labels': labels,
            'perplexity': args.perplexity,
            'neighbours': k,
            'seed': args.seed,
            'engine': args.engine,
            'models': {
                name: {
                    'features': vars(e.original),
                    'picture': vars(e.flat),
                    'trustworthiness': e.trustworthiness,
                    'places': e.places,
                }
                for name, e in made.items()
            },
        }
        written = save_picture(figure, args.out, caption, numbers)
    print(told.replace('; ', '\n'), *written, sep='\n')
