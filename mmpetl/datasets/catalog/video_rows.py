"""The three video sets."""

from __future__ import annotations

from mmpetl.datasets.catalog.entry import DatasetFacts, Split


def _video(
    id: str,
    title: str,
    num_classes: int,
    splits: tuple[Split, ...],
    licence: str,
    source: str,
    traps: tuple[str, ...],
    part_of: str = '',
) -> DatasetFacts:
    return DatasetFacts(
        id=id,
        title=title,
        benchmark='video',
        family='video',
        group='video',
        num_classes=num_classes,
        splits=splits,
        base='',
        folder=id,
        layout='video',
        metrics=('top1', 'top5'),
        licence=licence,
        source=source,
        traps=traps,
        part_of=part_of,
    )


def _hmdb51_splits() -> tuple[Split, ...]:
    """Split 1 is ``train`` and ``val``; the other two bear their number."""
    splits = []
    for number in (1, 2, 3):
        tail = '' if number == 1 else f'_{number}'
        for name, size in (('train', 3_570), ('val', 1_530)):
            file = f'hmdb51_{name}_split_{number}_videos.txt'
            splits.append(Split(name + tail, size, file, 'videos', number > 1))
    return tuple(splits)


VIDEO_ROWS = (
    _video(
        'kinetics400',
        'Kinetics-400',
        400,
        (
            Split('train', None, 'kinetics400_train_list_videos.txt', 'videos_train'),
            Split('val', None, 'kinetics400_val_list_videos.txt', 'videos_val'),
        ),
        'annotations CC BY 4.0; clips under the terms of YouTube',
        'cvdfoundation/kinetics-dataset',
        (
            'About 240,000 and 20,000 clips; many have disappeared, so that copies '
            'differ: state the counts of yours with a result.',
            'Class folders of the release hold blanks.',
        ),
    ),
    _video(
        'ssv2',
        'Something-Something V2',
        174,
        (
            Split('train', 168_913, 'sthv2_train_list_videos.txt', 'videos'),
            Split('val', 24_777, 'sthv2_val_list_videos.txt', 'videos'),
        ),
        'non-commercial; registration',
        'Qualcomm AI Datasets, .webm, to be re-encoded to .mp4',
        (
            'The test set has no public labels; "test" in papers is validation.',
            'A horizontal flip changes the label.',
        ),
    ),
    _video(
        'hmdb51',
        'HMDB51',
        51,
        _hmdb51_splits(),
        'CC BY 4.0',
        'Serre Lab, Brown University: hmdb51_org.rar and test_train_splits.rar',
        (
            'Published figures are those of split 1.',
            'Clips are cut from films; the splits keep those of one together.',
        ),
        part_of=r'_[fhlu]_[cn]m_np\d+_(?:ba|fr|le|ri)_(?:bad|goo|med)_\d+',
    ),
)
