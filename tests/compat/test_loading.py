"""Safe loading: MMEngine's resume files load, nothing that would run code does."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
import torch
from mmengine.logging import HistoryBuffer, MessageHub

from mmpetl.compat import load_file


@pytest.fixture
def hub() -> MessageHub:
    hub = MessageHub('compat-loading')
    for value in (1.5, np.float32(2.5), torch.tensor(3.5)):
        hub.update_scalar('train/loss', value)
    hub.update_info('iter', 3)
    for kind in (np.float64, np.float32, np.int64, np.bool_):
        hub.update_info(kind.__name__, kind(1))
    return hub


@pytest.mark.parametrize('load', [load_file, torch.load])
def test_a_message_hub_round_trips(tmp_path, hub, load):
    path = tmp_path / 'iter_3.pth'
    torch.save({'message_hub': hub.state_dict(), 'meta': {'iter': 3}}, path)
    state = load(path)['message_hub']
    buffer = state['log_scalars']['train/loss']
    assert isinstance(buffer, HistoryBuffer)
    assert buffer.data[0].tolist() == [1.5, 2.5, 3.5]
    assert buffer.mean() == 2.5
    assert buffer.statistics('max') == 3.5
    assert state['runtime_info']['float32'] == 1
    assert state['runtime_info']['iter'] == 3


def test_a_runner_resumes_from_its_checkpoint(tmp_path):
    from mmengine.model import BaseModel
    from mmengine.runner import Runner

    class Toy(BaseModel):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(1))

        def forward(self, inputs, mode='tensor'):
            return {'loss': (self.scale * torch.stack(inputs).sum()) ** 2}

    class ToyData(torch.utils.data.Dataset):
        def __len__(self):
            return 4

        def __getitem__(self, index):
            return {'inputs': torch.ones(2)}

    def run(epochs: int, resume: bool) -> Runner:
        runner = Runner(
            Toy(),
            str(tmp_path),
            train_dataloader={
                'dataset': ToyData(),
                'batch_size': 2,
                'sampler': {'type': 'DefaultSampler', 'shuffle': False},
                'num_workers': 0,
            },
            train_cfg={'by_epoch': True, 'max_epochs': epochs},
            optim_wrapper={'optimizer': {'type': 'SGD', 'lr': 0.01, 'momentum': 0.9}},
            resume=resume,
            default_scope='mmengine',
            experiment_name=f'compat-{epochs}-{resume}',
        )
        runner.train()
        return runner

    run(1, resume=False)
    resumed = run(2, resume=True)
    assert resumed.epoch == 2
    assert resumed.iter == 4


class Opens:
    def __reduce__(self):
        return os.system, ('exit 1',)


class Reaches:
    """Asks for getattr on something else than a statistic."""

    def __reduce__(self):
        return getattr, (HistoryBuffer, '__init__')


class ReachesFurther:
    def __reduce__(self):
        return getattr, (torch.Size, '__subclasses__')


@pytest.mark.parametrize('payload', [Opens(), Reaches(), ReachesFurther()])
@pytest.mark.parametrize('protocol', [2, 4])
def test_what_could_run_code_is_refused(tmp_path, payload, protocol):
    path = tmp_path / 'bad.pth'
    torch.save({'state_dict': {}, 'extra': payload}, path, pickle_protocol=protocol)
    with pytest.raises(ValueError, match=r'bad\.pth cannot be loaded as plain'):
        load_file(path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path)


def test_missing_and_damaged_files_get_one_line(tmp_path):
    with pytest.raises(FileNotFoundError, match=r'no such file: .*none\.pth'):
        load_file(tmp_path / 'none.pth')
    whole = tmp_path / 'whole.pth'
    torch.save({'w': torch.zeros(1000)}, whole)
    torn = tmp_path / 'torn.pth'
    torn.write_bytes(whole.read_bytes()[:700])
    with pytest.raises(ValueError, match=r'torn\.pth cannot be loaded') as error:
        load_file(torn)
    assert '\n' not in str(error.value)
