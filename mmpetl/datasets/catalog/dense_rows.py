"""Detection and segmentation."""

from __future__ import annotations

from mmpetl.datasets.catalog.entry import UNSTATED, DatasetFacts, Split

_VOC_SOURCE = 'PASCAL VOC, Oxford: VOCtrainval and VOCtest archives'
DENSE_ROWS = (
    DatasetFacts(
        id='coco',
        title='COCO 2017',
        benchmark='dense',
        family='detection',
        group='dense',
        num_classes=80,
        splits=(
            Split(
                'train', 118_287, 'annotations/instances_train2017.json', 'train2017'
            ),
            Split('val', 5_000, 'annotations/instances_val2017.json', 'val2017'),
        ),
        base='',
        folder='coco',
        layout='coco',
        metrics=('ap_box', 'ap_mask'),
        licence='annotations CC BY 4.0; pictures under the terms of Flickr',
        source='cocodataset.org',
        traps=(
            'Category ids run to 90 with ten gaps.',
            'Some published figures are of test-dev: state the split.',
        ),
    ),
    DatasetFacts(
        id='ade20k',
        title='ADE20K, SceneParse150',
        benchmark='dense',
        family='segmentation',
        group='dense',
        num_classes=150,
        splits=(
            Split('train', 20_210, '', 'images/training'),
            Split('val', 2_000, '', 'images/validation'),
        ),
        base='',
        folder='ADEChallengeData2016',
        layout='ade20k',
        metrics=('miou',),
        licence='research only',
        source='MIT Scene Parsing Benchmark, ADEChallengeData2016.zip',
        traps=('Label 0 is "other": it is taken off, and 1 to 150 become 0 to 149.',),
    ),
    DatasetFacts(
        id='voc',
        title='PASCAL VOC 07+12, detection',
        benchmark='dense',
        family='detection',
        group='dense',
        num_classes=20,
        splits=(
            Split('trainval2007', 5_011, 'VOC2007/ImageSets/Main/trainval.txt'),
            Split('trainval2012', 11_540, 'VOC2012/ImageSets/Main/trainval.txt'),
            Split('test2007', 4_952, 'VOC2007/ImageSets/Main/test.txt'),
        ),
        base='',
        folder='VOCdevkit',
        layout='voc',
        metrics=('map50',),
        licence=UNSTATED,
        source=_VOC_SOURCE,
        traps=('The figure published as AP is the mAP at IoU 0.5 with eleven points.',),
    ),
    DatasetFacts(
        id='voc_seg',
        title='PASCAL VOC 2012, segmentation',
        benchmark='dense',
        family='segmentation',
        group='dense',
        num_classes=21,
        splits=(
            Split('train', 1_464, 'ImageSets/Segmentation/train.txt', 'JPEGImages'),
            Split(
                'aug',
                9_118,
                'ImageSets/Segmentation/aug.txt',
                'JPEGImages',
                optional=True,
            ),
            Split('val', 1_449, 'ImageSets/Segmentation/val.txt', 'JPEGImages'),
        ),
        base='VOCdevkit',
        folder='VOC2012',
        layout='voc_seg',
        metrics=('miou',),
        licence=UNSTATED,
        source=_VOC_SOURCE + '; aug: the masks of SBD in SegmentationClassAug',
        traps=('Masks are palette pictures: 0 is background, 255 the rim.',),
    ),
)
